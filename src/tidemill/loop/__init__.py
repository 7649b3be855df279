"""The life cycle wired together: recipes, routing, rollouts and the demo.

Nothing is exported here: ``cli`` and ``server`` import the module they need, so that a light command loads no more
than it uses.
"""
