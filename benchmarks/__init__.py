"""How fast the hub is, beside brokers that everybody knows, measured in the same run. See README.md here.

These are measurements and no tests: nothing fails because a figure is low. What is lost or doubled does fail the run.
"""
