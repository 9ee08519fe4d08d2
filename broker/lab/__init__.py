"""The testbed: nodes with live data and a load to order, in containers or as processes (`broker lab`).

host.py what a node tells of its host; node.py the node. Not here: commands (cli/lab.py).
"""
