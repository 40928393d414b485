"""The report: from finished runs and samples to figures, sentences and one HTML page.

Importing it loads no plotting library; that happens when a report is made.
"""

from .assembly import report
