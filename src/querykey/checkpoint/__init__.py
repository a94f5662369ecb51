"""Reading the query, key and value weights of any trained checkpoint, head by head."""

from querykey.checkpoint.headmap import CheckpointError as CheckpointError
from querykey.checkpoint.headmap import HeadMap as HeadMap
from querykey.checkpoint.headmap import ModelMap as ModelMap
from querykey.checkpoint.headmap import Norm as Norm
from querykey.checkpoint.headmap import Projection as Projection
from querykey.checkpoint.headmap import Reason as Reason
from querykey.checkpoint.headmap import Rotary as Rotary
from querykey.checkpoint.headmap import Rows as Rows
from querykey.checkpoint.probe import probe as probe
from querykey.checkpoint.reading import Checkpoint as Checkpoint
from querykey.checkpoint.reading import LayerWeights as LayerWeights
from querykey.checkpoint.reading import open_checkpoint as open_checkpoint
from querykey.checkpoint.reading import open_module as open_module
from querykey.checkpoint.rotation import rotate as rotate
