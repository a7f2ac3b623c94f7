"""`kvproxy fit` makes a profile of a live fleet: a bounded set of probes, and the fit that kvproxy learns by.

    sizes       pure: which probes are sent
    seen        what engines took for them, as values
    asking      one probe after the other, each with a deadline
    fleet       which engines and pairs are probed, and when it is enough
    outcome     pure: what was seen becomes a profile, and its error on probes that it was not fitted to
    shown       the outcome in words

Probes are small beside what an engine serves, but they share its time: traffic and fit disturb each other.
"""
