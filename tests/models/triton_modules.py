"""The kernels of a program that was lowered for a GPU, without having one."""

from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jax._src.lib.triton import dialect

_TARGET = '__gpu$xla.gpu.triton'


def count(lowered):
  """How many there are; MLIRError if Triton could not read one of them.

  Lowering writes them down unchecked: XLA reads them first on the device.
  """
  context = mlir.JaxIrContext()
  context.append_dialect_registry(mlir.upstream_dialects)
  dialect.register_dialect(context)
  context.load_all_available_dialects()
  found = list(_codes(lowered.compiler_ir().operation))
  with context, ir.Location.unknown():
    return sum(ir.Module.parse(code).operation.verify() for code in found)


def _codes(operation):
  for region in operation.regions:
    for block in region:
      for inner in block:
        attributes = inner.operation.attributes
        is_call = inner.operation.name == 'stablehlo.custom_call'
        if is_call and attributes['call_target_name'].value == _TARGET:
          yield attributes['mhlo.backend_config']['ir'].value_bytes
        yield from _codes(inner.operation)
