"""What a classifier gets right and wrong, in tables and plots."""

from fastclf.interpret.confusion import classification_report, confusion_matrix, plot_confusion_matrix
from fastclf.interpret.images import plots, plots_from_files
from fastclf.interpret.results import ImageModelResults

__all__ = [
    "ImageModelResults",
    "classification_report",
    "confusion_matrix",
    "plot_confusion_matrix",
    "plots",
    "plots_from_files",
]
