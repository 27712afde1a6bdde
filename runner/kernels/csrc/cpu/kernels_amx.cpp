// The panel form of the matrix products for amx. Compiled with that instruction set's flags: see isa.h for what may be
// included here.
#include "matfloat.h"
#include "matmul_amx.h"
#include "quantize.h"
#include "simd_avx512.h"

namespace shale {
namespace {

template <class V, class... Q, class... F>
constexpr FormTable make_panel_table(TypeList<Q...>, TypeList<F...>) {
  return {.widths = kAmxWidths,
          .quantize = quantize_tile<V>,
          .multiply = {multiply_with_tiles<V, Q>..., multiply_float<V, F>...}};
}

}  // namespace

const FormTable kAmxPanelKernels = make_panel_table<Avx512Vnni>(QuantTypes{}, FloatTypes{});
}  // namespace shale
