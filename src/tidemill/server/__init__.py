"""The control plane, its REST API and the supervisor of ``tidemill up``.

Nothing is exported here: ``cli`` imports the module it needs, so that ``tidemill status`` loads no web framework.
"""
