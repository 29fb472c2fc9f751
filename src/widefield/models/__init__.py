"""Every family, registered in timm when this package is imported."""

from widefield.models.catalogue import create_model as create_model
from widefield.models.catalogue import list_models as list_models
from widefield.models.replknet import RepLKNet as RepLKNet
