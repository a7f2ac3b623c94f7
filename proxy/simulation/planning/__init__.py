"""How much traffic a number of GPUs carries, and how they are best split, by runs in simulated time.

    splits      which fleets can be made of so many GPUs
    trial       one run, which is left as soon as it is hopeless
    search      the highest load that meets the goals, by few runs
    outcome     what the runs say: a limit for each split, and which to take
    planner     which runs are made, in what order
    page        the outcome as one page

Time is simulated, but for what a run takes of this machine, which is measured.
"""
