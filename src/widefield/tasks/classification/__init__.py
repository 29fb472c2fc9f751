"""Image classification: train, evaluate, predict."""

from widefield.tasks.classification.card import ClassifierCard as ClassifierCard
from widefield.tasks.classification.card import find_checkpoint as find_checkpoint
from widefield.tasks.classification.card import load_classifier as load_classifier
from widefield.tasks.classification.card import save_classifier as save_classifier
from widefield.tasks.classification.config import ModelConfig as ModelConfig
from widefield.tasks.classification.config import RunConfig as RunConfig
from widefield.tasks.classification.config import read_config as read_config
from widefield.tasks.classification.evaluation import Evaluation as Evaluation
from widefield.tasks.classification.evaluation import evaluate as evaluate
from widefield.tasks.classification.opening import OpenedModel as OpenedModel
from widefield.tasks.classification.opening import open_model as open_model
from widefield.tasks.classification.prediction import Prediction as Prediction
from widefield.tasks.classification.prediction import predict as predict
from widefield.tasks.classification.run import RunSummary as RunSummary
from widefield.tasks.classification.run import train as train
