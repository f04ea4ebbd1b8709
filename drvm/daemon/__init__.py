"""Level 6: the scheduler. Policies become points, unattended.

``loop`` is the daemon's life, and talks to ``systemd``. In it:

- what begins when: ``engine`` decides about each ``task``; by ``owed`` (what a schedule owes),
  ``memory`` (earlier runs), ``queue`` (whose time has come) and ``slots`` (limits). ``running`` is
  one run under way.
- what is done: ``duties`` are all that one config makes; ``tasks`` its jobs, with what they do to
  machines (``tasks_vms``, ``hooks``) and to the repository (``tasks_upkeep``), for the machines
  that ``tasks_fleet`` sees. ``alone`` does one job for ``drvm run``.
- what is told: ``watch`` looks each minute; ``alarms`` says what is raised and withdrawn,
  ``figures`` counts, ``gathering`` holds the repository open, ``looked`` is what ``status`` learns.
  ``logs`` is for all of drvm.
"""
