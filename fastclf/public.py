"""What `fastclf` offers under its own name. Importing it touches no GPU and imports neither DALI nor timm."""

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.image import open_image
from fastclf.data.image_transforms import tfms_from_stats
from fastclf.data.options import Options
from fastclf.data.sources.split import get_cv_idxs, get_group_idxs
from fastclf.data.transforms.augmentations import (
    Cutout,
    RandomBlur,
    RandomDihedral,
    RandomFlip,
    RandomLighting,
    RandomRotate,
    RandomStretch,
    RandomZoom,
    transforms_basic,
    transforms_side_on,
    transforms_top_down,
)
from fastclf.data.transforms.base import GeometricAugmentation, PixelAugmentation
from fastclf.data.transforms.spec import CropType
from fastclf.errors import (
    ActivationFileError,
    BackendError,
    BadImageError,
    CheckpointError,
    DataError,
    DivergedError,
    ExportError,
    FastclfError,
    GpuMemoryError,
    LabelError,
    WeightsError,
)
from fastclf.interpret.confusion import classification_report, confusion_matrix, plot_confusion_matrix
from fastclf.interpret.images import plots, plots_from_files
from fastclf.interpret.results import ImageModelResults
from fastclf.learners.comparing import compare
from fastclf.learners.conv_learner import ConvLearner
from fastclf.learners.head_learner import HeadLearner
from fastclf.learners.learner import Learner
from fastclf.losses import BCE, L1, NLL
from fastclf.models.archs import (
    Arch,
    densenet121,
    densenet161,
    densenet169,
    densenet201,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50,
    resnext101,
    tfms_from_model,
    vgg16,
    vgg19,
    wide_resnet50,
    wide_resnet101,
)
from fastclf.predictions import Predictions
from fastclf.predictor import Classifier, load
from fastclf.report import quiet
from fastclf.training.callbacks import Callback
from fastclf.training.metrics import (
    accuracy,
    accuracy_np,
    accuracy_thresh,
    f1,
    fbeta,
    log_loss,
    mean_average_precision,
    precision,
    recall,
)
from fastclf.training.optimizer import SGDR

__all__ = [
    "BCE",
    "L1",
    "NLL",
    "SGDR",
    "ActivationFileError",
    "Arch",
    "BackendError",
    "BadImageError",
    "Callback",
    "CheckpointError",
    "Classifier",
    "ConvLearner",
    "CropType",
    "Cutout",
    "DataError",
    "DivergedError",
    "ExportError",
    "FastclfError",
    "GeometricAugmentation",
    "GpuMemoryError",
    "HeadLearner",
    "ImageClassifierData",
    "ImageModelResults",
    "LabelError",
    "Learner",
    "Options",
    "PixelAugmentation",
    "Predictions",
    "RandomBlur",
    "RandomDihedral",
    "RandomFlip",
    "RandomLighting",
    "RandomRotate",
    "RandomStretch",
    "RandomZoom",
    "WeightsError",
    "accuracy",
    "accuracy_np",
    "accuracy_thresh",
    "classification_report",
    "compare",
    "confusion_matrix",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "f1",
    "fbeta",
    "get_cv_idxs",
    "get_group_idxs",
    "load",
    "log_loss",
    "mean_average_precision",
    "open_image",
    "plot_confusion_matrix",
    "plots",
    "plots_from_files",
    "precision",
    "quiet",
    "recall",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50",
    "resnext101",
    "tfms_from_model",
    "tfms_from_stats",
    "transforms_basic",
    "transforms_side_on",
    "transforms_top_down",
    "vgg16",
    "vgg19",
    "wide_resnet50",
    "wide_resnet101",
]
