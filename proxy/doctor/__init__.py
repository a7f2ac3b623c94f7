"""`kvproxy doctor`: does each engine, and each pair of them, do what kvproxy relies on; and what to do where not."""

from proxy.doctor.examination import DEFAULT_LIMIT_S, Doctor
from proxy.doctor.findings import Report
from proxy.doctor.report import as_json, as_text

__all__ = ["DEFAULT_LIMIT_S", "Doctor", "Report", "as_json", "as_text"]
