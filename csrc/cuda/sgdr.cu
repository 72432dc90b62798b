#include "cuda/sgdr.cuh"

namespace fastclf {

namespace {

Grid grid_for(size_t n_tensors, size_t dynamic_bytes) {
  const size_t blocks = n_tensors < 1 ? 1 : n_tensors < kMostBlocks ? n_tensors : kMostBlocks;
  return {dim3(static_cast<unsigned>(blocks)), 32 * kSgdWarps, dynamic_bytes};
}

}  // namespace

Status clip_factor(const ClipFactor& op, void* stream) {
  return launch(clip_kernel, grid_for(op.n_tensors, 0), stream, op);
}

Status sgdr_update(const SgdrUpdate& op, void* stream) {
  if (op.n_groups > kMostGroups) return {"sgdr_update: there may be at most 1024 groups. Join some of them."};
  return launch(sgdr_kernel, grid_for(op.n_tensors, op.n_groups * sizeof(Rates)), stream, op);
}

}  // namespace fastclf
