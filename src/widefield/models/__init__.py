"""Every family, registered in timm when this package is imported."""

from widefield.models.catalogue import create_model as create_model
from widefield.models.catalogue import list_models as list_models
from widefield.models.convnext_lk import ConvNeXtLK as ConvNeXtLK
from widefield.models.mobilenetv2_lk import MobileNetV2LK as MobileNetV2LK
from widefield.models.pelk import PeLK as PeLK
from widefield.models.published import load_published as load_published
from widefield.models.replknet import RepLKNet as RepLKNet
from widefield.models.slak import SLaK as SLaK
from widefield.models.unireplknet import UniRepLKNet as UniRepLKNet
