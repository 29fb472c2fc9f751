"""Sparse training for any network: which weights there are, how that changes, what it saves.

Against the code that was published with SLaK (Liu et al., 2023). As there by default:

- densities by SNIP from the first batch of the first epoch, augmented but not mixed, with plain cross-entropy and the
  gradient averaged over the processes (a copy of the DDP model is asked; 512 images in each of the published commands,
  here `snip_batches` batches of the loader); the masks themselves are drawn at random;
- tensors of a density of 99 % become dense for good (`dense_from`);
- after every update the weights are masked, and SGD's momentum, but not AdamW's moments (`moments`);
- the share to replace follows a cosine over all optimizer updates, down to 0.005, and is advanced before a change;
  changes come every `update_every` updates, gradient accumulation counting as one;
- each tensor drops ceil(share * n) of its n active weights; what is dropped may be grown again at once, and then keeps
  its value; what is grown starts at zero;
- growth by momentum ranks m / (sqrt(v) + 1e-8) for Adam, m for SGD;
- the average of the weights has the zeros of the masks, and takes what has grown at its first value.

Different here:

| published | here | why |
|---|---|---|
| each zero is drawn with a probability, in first masks and in growth | exact counts | counts would drift |
| rank 0's masks are broadcast at every update | all ranks draw the same | nothing to send, and a resumed run is exact |
| SNIP keeps scores above the k-th largest | the k largest | k - 1 of them are above it |
| SNIP leaves nothing where gradients are zero | those share what is left evenly | a shut block would have no weights |
| dense tensors leave the masks, and counts with them | a mask of ones | densities are those of all that was selected |
| masks may change at the very last update | never then | what grows there would be zero for ever |
| SGD's momentum is masked in growth by momentum too | it is kept | else only what was just dropped could grow |
| "momentum_neuron" grows one less than its floor, and none below 10 | the count that was dropped | density falls |
| "SET": half the smallest, half the most negative | next to zero of each sign (Mocanu, 2018) | it ends in an error |
| with autocast, masks are applied at the start and not again | after every update | a fault of the published loop |
| `only_L`: names with "LoRA", the stripes | `which="large_kernels"`: sides above 7 | for any network |

Other options of that code have no effect or end in an error, and are not here: redistribution (read, never used), the
criteria "random_unfired", "mix", "global_magnitude" and "global_momentum_growth".
"""

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
