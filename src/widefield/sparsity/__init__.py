"""Sparse training for any network: which weights there are, how that changes, what it saves."""

from widefield.sparsity.allocation import erdos_renyi_kernel as erdos_renyi_kernel
from widefield.sparsity.allocation import from_file as from_file
from widefield.sparsity.allocation import snip as snip
from widefield.sparsity.allocation import uniform as uniform
from widefield.sparsity.compact import CompactReport as CompactReport
from widefield.sparsity.compact import compact as compact
from widefield.sparsity.compact import fit_shapes as fit_shapes
from widefield.sparsity.config import SparsityConfig as SparsityConfig
from widefield.sparsity.masks import Masks as Masks
from widefield.sparsity.report import ParameterCost as ParameterCost
from widefield.sparsity.report import SparsityReport as SparsityReport
from widefield.sparsity.report import sparsity_report as sparsity_report
from widefield.sparsity.storage import StorageReport as StorageReport
from widefield.sparsity.storage import load_sparse as load_sparse
from widefield.sparsity.storage import save_sparse as save_sparse
from widefield.sparsity.training import SparseTraining as SparseTraining
from widefield.sparsity.training import initial_masks as initial_masks
