"""The rooms behind :func:`~maxl_l2l.reports.report`: from runs and samples to figures, sentences and a page."""
