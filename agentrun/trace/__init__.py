"""`agentrunctl trace`: what the calls of one container do right now, by probes that bcc compiles on the host.

    needs       what a host must have for it
    target      which container, and which cgroups are its calls
    source      the probes: compiled, attached, read, detached
    collector   which cgroup is which call; what each did so far
    rows        pure: what was done between two looks, and which rows are shown
    table       pure: rows for people and for programs
    run         the loop: look, print, end
    cli         its options

Nothing else of agentrun imports any of it, and only `source` touches bcc.
"""
