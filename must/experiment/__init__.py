"""What recipes share: typed settings and the objects made from them, the job runner, the jobs, the comparison.

Nothing to the right of this room sees a configuration; what a single recipe does is in `must.recipes`.
"""
