"""Reports: from the rows of a study to one page."""

from fastxai.report.blocks import Panels as Panels
from fastxai.report.blocks import Picture as Picture
from fastxai.report.blocks import Section as Section
from fastxai.report.blocks import Table as Table
from fastxai.report.blocks import Text as Text
from fastxai.report.findings import Findings as Findings
from fastxai.report.page import build_sections as build_sections
from fastxai.report.page import page as page
from fastxai.report.page import write as write

__all__ = ["Findings", "Panels", "Picture", "Section", "Table", "Text", "build_sections", "page", "write"]
