"""Large kernels for other people's networks: the same function at first, more reach once trained."""

from widefield.surgery.enlarge import METHODS as METHODS
from widefield.surgery.enlarge import enlarge as enlarge
from widefield.surgery.enlarged_conv import EnlargedConv2d as EnlargedConv2d
from widefield.surgery.report import EnlargedLayer as EnlargedLayer
from widefield.surgery.report import EnlargeReport as EnlargeReport
from widefield.surgery.report import SkippedLayer as SkippedLayer
