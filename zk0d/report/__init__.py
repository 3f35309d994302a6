"""What a run's journal tells: figures, what was odd in it, charts, comparisons."""

REPORT, PAGE = "report", "index.html"  #: in a run's folder
