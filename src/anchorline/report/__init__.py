"""What a run leaves for readers: one self-contained HTML page (no script, no request), and a card beside the model.

>>> page = build_report(ReportData(name="harbour"))
>>> "This stage has not run" in page
True
"""

from anchorline.report.card import build_card, write_card
from anchorline.report.files import ReportData, read_run_folder
from anchorline.report.html import build_report, write_report

__all__ = ["ReportData", "build_card", "build_report", "read_run_folder", "write_card", "write_report"]
