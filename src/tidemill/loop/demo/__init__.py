"""The demo: one turn of the whole loop on real text, on one machine, offline.

``stages`` is the story in its order; each stage asks the ledger what is done already, so that a demo that was killed
goes on where it stopped when it is called again.
"""
