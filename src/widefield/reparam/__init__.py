"""Structural re-parameterization of any network: the algebra, the folds, and the merge with its certificate."""

from widefield.reparam.algebra import affine_of_batch_norm as affine_of_batch_norm
from widefield.reparam.algebra import embed_kernel as embed_kernel
from widefield.reparam.algebra import fold_affine_after as fold_affine_after
from widefield.reparam.algebra import fold_affine_before as fold_affine_before
from widefield.reparam.fold import fold_after as fold_after
from widefield.reparam.fold import fold_before as fold_before
from widefield.reparam.fold import fold_scale_after as fold_scale_after
from widefield.reparam.fold import folded_after as folded_after
from widefield.reparam.fold import set_parameters as set_parameters
from widefield.reparam.merge import fold as fold
from widefield.reparam.merge import merge as merge
from widefield.reparam.protocol import Reparameterizable as Reparameterizable
from widefield.reparam.protocol import check_evaluation_mode as check_evaluation_mode
from widefield.reparam.report import MergeReport as MergeReport
from widefield.reparam.report import UnitError as UnitError
from widefield.reparam.unmerge import UnmergeInfo as UnmergeInfo
from widefield.reparam.unmerge import unmerge as unmerge
from widefield.reparam.unmerge import unmerge_info as unmerge_info
