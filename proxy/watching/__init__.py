"""Each instance is watched from when it is wanted until it is gone: which instances there are, and whether
they can be used.

    watch        takes instances in and out as membership sources say, and owns all tasks
    membership   the sources: flags, operators, and whatever else names instances (`base` is the contract)
    rounds       checks each instance at its pace, and asks what it serves
    checks       one check, one finding
    scrapes      what runs on each engine, whoever sent it
    leg_reports  what legs show of engines
    health       the book in which checks and legs are entered: circuits, and what is logged of them
    processes    distinguishes an engine process from the one before it
    sleeping     which engines sleep, and how deeply
    adapters     names that no engine lists are looked up; adapters are loaded and unloaded on all engines
    changes      changes that no check and no leg shows
    startup      the end of the start
    ports        what is needed of the engine client

What is known of an engine goes into its `fleet.Instance`, by its verbs.
"""
