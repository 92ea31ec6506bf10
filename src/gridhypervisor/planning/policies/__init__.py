"""The scheduling policies: which job goes first, and where. Pure functions over columns; GridWay's rules, each cited.

`jobs` orders the jobs that want a place; `resources` says how suitable each candidate is; `cycle` gives the one to the
other (`assign`) as long as there is `room`; `verdicts` explains a cycle; `usage` carries forward what is remembered;
`moves` says when a job that has a place should have another. The settings are `model/policy.py`. What a job requires
and ranks by is the matcher's; when a cycle runs, and what follows on it, is the loop's.
"""
