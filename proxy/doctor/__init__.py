"""`kvproxy doctor` finds out whether each engine, and each pair of them, does what kvproxy relies on, and
what to do if not.

    examination  all instances within one deadline, and which findings are asked for
    probing      what is asked of one engine, with `asking`, `listening` and `prompts`
    patience     how long each answer is waited for
    handover     what is tried with a pair
    facts        what was seen, without judgement
    *_steps      pure: facts become findings, with `runs`
    findings     what was found, as values
    report       the same as text and as JSON

A check is a fact, the question that brings it, its judgement, and a place in `examination`. What concerns the
way that KV moves is judged by the connector.
"""

from proxy.doctor.examination import DEFAULT_LIMIT_S, Doctor
from proxy.doctor.findings import Report
from proxy.doctor.report import as_json, as_text

__all__ = ["DEFAULT_LIMIT_S", "Doctor", "Report", "as_json", "as_text"]
