"""One self-contained HTML page per run: what changed, what did not, and every setting. No script, no request.

>>> page = build_report(ReportData(name="harbour"))
>>> "This stage has not run" in page
True
"""

from anchorline.report.html import ReportData, build_report, read_run_folder, write_report

__all__ = ["ReportData", "build_report", "read_run_folder", "write_report"]
