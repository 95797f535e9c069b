"""The sections of reports: one file each, with a function ``build(findings) -> Section``."""
