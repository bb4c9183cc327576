"""Child processes: ``children`` is the parent's side, ``child`` the child's.

``watching`` follows a job in another process, also one of an engine, and kills what does not end.
"""
