"""Images with labels: from what the user typed as `root` to deterministic, resumable batches."""

from widefield.data.batch import Batch as Batch
from widefield.data.config import AugmentationConfig as AugmentationConfig
from widefield.data.config import DataConfig as DataConfig
from widefield.data.errors import UndecodableImageError as UndecodableImageError
from widefield.data.identity import DataIdentity as DataIdentity
from widefield.data.identity import identify as identify
from widefield.data.identity import read_images as read_images
from widefield.data.identity import write_images as write_images
from widefield.data.image import label_names as label_names
from widefield.data.image import read_image as read_image
from widefield.data.loader import ImageLoader as ImageLoader
from widefield.data.loader import evaluation_loader as evaluation_loader
from widefield.data.loader import train_loader as train_loader
from widefield.data.photos import Photos as Photos
from widefield.data.photos import open_photos as open_photos
from widefield.data.source import ImageSource as ImageSource
from widefield.data.source import Splits as Splits
from widefield.data.source import open_split as open_split
from widefield.data.source import open_splits as open_splits
from widefield.data.transforms import evaluation_transform as evaluation_transform
