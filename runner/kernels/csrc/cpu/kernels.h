// Builds the table of one instruction set from its vocabulary V. Included by one translation unit for each.
#pragma once

#include "kernel_table.h"
#include "matfloat.h"
#include "matmul.h"
#include "matvec.h"
#include "quantize.h"

namespace shale {
namespace {

template <class V, class... Q, class... F>
constexpr KernelTable make_table(TypeList<Q...>, TypeList<F...>) {
  return {.direct = {.widths = kDirectWidths,
                     .quantize = quantize_tile<V>,
                     .multiply = {multiply_direct<V, Q>..., multiply_float<V, F>...}},
          .panel = {.widths = kPanelWidths,
                    .quantize = quantize_tile<V>,
                    .multiply = {multiply_unpacked<V, Q>..., multiply_float<V, F>...}}};
}

template <class V>
constexpr KernelTable make_table() {
  return make_table<V>(QuantTypes{}, FloatTypes{});
}

}  // namespace
}  // namespace shale
