"""The SIGKILL storm: seeded kills of every process while writers and searchers run, and then a count of what was lost.

`values` is what is written, `oracle` what must be there, `processes` what is killed, `traffic` who writes and searches,
`plan` what the upgrade goes through, `checks` the count afterwards, `__main__` the runs and their table.
"""
