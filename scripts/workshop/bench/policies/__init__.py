"""What policies are worth, in simulated time: many runs, and what they must show.

traffics     the workloads, by name
cells        one run: what is asked, and what came out
store        runs that are over, in a file, so that a grid can go on where it was stopped
grid         which runs there are
reference    figures of other simulators, and a policy of ours as it was
verdicts     what the runs must show, and whether they do
ablation     `least_ms` without one of its parts
run          a grid, from the first cell to the last verdict
"""
