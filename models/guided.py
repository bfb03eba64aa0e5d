"""Self-guided training: a dense matrix leads a structured one, and fades.

Building on Efficient Foundations (arXiv 2406.16450, section 3.3): the
structured layer takes over from what has been trained, so that the model works
at every step.
"""

import flax.linen as nn
import jax

from models import linear
from models import structured


class Guided(nn.Module, kw_only=True):
  """y = share x W + (1 - share) student(x), W being `teacher`.

  Neither teacher nor share has a gradient: what trains the model sets share,
  1 at first and 0 in the end.

  student: prototype of the structured layer.
  features, gain, dtype: as linear.Dense.
  """

  student: nn.Module = structured.BlockTensorTrain()
  features: int = 0
  gain: float = 1.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    student = self.student.copy(
      name='structure',
      features=self.features,
      gain=self.gain,
      dtype=self.dtype,
    )
    shape = (x.shape[-1], self.features)
    teacher = self.param('teacher', nn.initializers.zeros, shape)
    share = self.param('share', nn.initializers.ones, ())
    teacher, share = jax.lax.stop_gradient((teacher, share))
    tokens = x.reshape(-1, shape[0]).astype(self.dtype)
    led = (tokens @ teacher.astype(self.dtype)).reshape(*x.shape[:-1], -1)
    share = share.astype(self.dtype)
    return share * led + (1 - share) * student(x)


def around(layer: nn.Module | linear.Roles) -> nn.Module | linear.Roles:
  """Prototypes of which all that are structured are guided."""
  return linear.mapped(
    layer,
    lambda one: Guided(student=one, parent=None)
    if isinstance(one, structured.Structured)
    else one,
  )
