"""Each instance is watched from when it is wanted until it is gone: who the instances are, and whether they
can be used.

    watch        takes instances in and out as membership sources say, and owns all tasks
    membership   the sources: flags, operators, and whatever else names instances (`base` is the contract)
    rounds       checks each instance at its pace, and asks what it serves
    checks       one check, one finding
    leg_reports  what legs show of engines
    health       the book in which checks and legs are entered: circuits, and what is said of them
    processes    tells an engine process from the one before it
    sleeping     who sleeps, and what that has cost
    adapters     names that no engine lists are asked for; adapters are loaded and unloaded on all engines
    changes      what changes without a check or a leg to tell of it
    startup      the end of the start
    ports        what is needed of the engine client

What is known of an engine goes into its `fleet.Instance`, by its verbs.
"""
