"""Plans: what is imaged, when, and what is kept, as files; their runs, and what became of them.

A plan is a list of commands that anyone could type. `reading` turns its file into a `Plan`, `times` says
when it is due, `steps` which commands that means, and `running` runs each as a process of its own.
"""
