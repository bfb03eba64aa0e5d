"""Pure-function Flax (Linen) models over bytes.

Array names end in their axes, and einsum strings use the same letters:
  B batch          T query (byte) positions   S key positions
  D width          H query heads              G key/value heads
  R query heads per key/value head (H = G R)  K per-head width
  F hidden width   V vocabulary               N n-gram sizes
  P patches        C context of recent ids, a set of keys
  E events of a table   C their columns, too   J those with numbers
  Q places of cells in an event or a group of cells
  L blocks of one row   M slots of a patch, sets of keys
  W latent rows    Y decoder layers
Masks are boolean, True = may look. Document id 0 marks padding.
"""
