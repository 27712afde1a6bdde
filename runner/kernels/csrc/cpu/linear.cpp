#include "linear.h"

#include <algorithm>
#include <memory>
#include <new>
#include <span>

#include "isa.h"
#include "kernel_table.h"
#include "pool.h"
#include "repack.h"

namespace shale {
namespace {

// Up to this many tokens the direct form is as fast or faster, because it computes while it waits for memory. Cycles of
// a Zen 5 core a token and a block of 32 columns x 16 rows that come from memory, direct and panel form: Q4_K 6.9 and
// 10.7 for 16 tokens, 7.0 and 8.3 for 32, 7.2 and 7.5 for 48; Q6_K 7.7 and 11.3, 7.9 and 8.9, 8.1 and 8.1. With
// AVX-VNNI 16 tokens take 15.0 and 15.9, 32 take 15.0 and 13.7; AVX2 alone lies between, and AMX is even at 16.
constexpr int64_t kDirectTokens = 16, kDirectTokensAvx512 = 48;
// Weights in one piece of a direct product: small enough to share the last pieces out evenly, large enough (some
// microseconds) for the piece counter to cost nothing.
constexpr int64_t kPieceBytes = 96 << 10;
constexpr int kPiecesPerThread = 4;
constexpr int64_t kTokensPerGroup = 96;  // that are worth unpacking a panel for
constexpr int64_t kPanelsPerStep = 2;    // the widest microkernel's

const FormTable& active_kernels(bool is_direct) {
  const auto form_of = [=](const KernelTable& table) -> const FormTable& {
    return is_direct ? table.direct : table.panel;
  };
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::amx:
      return is_direct ? kAvx512VnniKernels.direct : kAmxPanelKernels;
    case Isa::avx512vnni:
      return form_of(kAvx512VnniKernels);
    case Isa::avxvnni:
      return form_of(kAvxVnniKernels);
    case Isa::avx2:
      return form_of(kAvx2Kernels);
#endif
    default:
      return form_of(kPortableKernels);
  }
}

// Grow-only memory of the calling thread, so that a decode step allocates nothing.
class Buffer {
 public:
  uint8_t* at_least(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();  // first, so that the two are not held together
      size_ = 0;
      memory_.reset(static_cast<uint8_t*>(::operator new(static_cast<std::size_t>(bytes), kAlignment)));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{kLine};
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<uint8_t, Free> memory_;
  int64_t size_ = 0;
};

// Panels [begin, end) of a target times tiles [first_tile, end_tile).
struct Piece {
  int target, first_tile, end_tile;
  int64_t begin, end;
};

struct Workspace {
  std::vector<Tile> tiles;
  std::vector<Piece> pieces;
  Buffer activations, scratch;
};

Workspace& workspace() {
  thread_local Workspace mine;
  return mine;
}

// Splits the tokens evenly into as few tiles as there can be.
void plan_tiles(int64_t num_tokens, std::span<const int> widths, std::vector<Tile>& tiles) {
  const int64_t widest = widths.back();
  const int64_t num_tiles = (num_tokens + widest - 1) / widest;
  tiles.assign(static_cast<std::size_t>(num_tiles), Tile{});
  int64_t token = 0;
  for (int64_t i = 0; i < num_tiles; ++i) {
    Tile& tile = tiles[static_cast<std::size_t>(i)];
    tile.num_tokens = static_cast<int>((num_tokens - token + num_tiles - i - 1) / (num_tiles - i));
    tile.width = *std::lower_bound(widths.begin(), widths.end(), tile.num_tokens);
    tile.first_token = token;
    token += tile.num_tokens;
  }
}

template <class T>
T* take(uint8_t*& memory, int64_t count) {
  T* taken = reinterpret_cast<T*>(memory);
  memory += (count * int64_t{sizeof(T)} + kLine - 1) / kLine * kLine;
  return taken;
}

void place_tile(Tile& tile, int64_t cols, uint8_t*& memory) {
  const int64_t n = num_padded_blocks(cols) * tile.width;
  tile.num_blocks = cols / kBlock;
  tile.q = take<int32_t>(memory, 8 * n);
  tile.scale = take<float>(memory, n);
  tile.sum = take<float>(memory, n);
  tile.half_sum = take<float>(memory, 2 * n);
  tile.count = take<int32_t>(memory, n);
  tile.half_count = take<int32_t>(memory, 2 * n);
}

int64_t tile_bytes(const Tile& tile, int64_t cols) {
  constexpr int kArrays = 6, kWords = 15;
  return kWords * 4 * num_padded_blocks(cols) * tile.width + kArrays * kLine;
}

void quantize_tiles(const FormTable& kernels, const float* x, int64_t cols, Workspace& space) {
  int64_t bytes = 0;
  for (const Tile& tile : space.tiles) bytes += tile_bytes(tile, cols);
  uint8_t* memory = space.activations.at_least(bytes);
  for (Tile& tile : space.tiles) place_tile(tile, cols, memory);
  const auto quantize = [&](int64_t i, int) {
    const Tile& tile = space.tiles[static_cast<std::size_t>(i)];
    kernels.quantize(x + tile.first_token * cols, cols, tile);
  };
  if (space.tiles.size() == 1) return quantize(0, 0);  // shorter than waking a thread
  Pool::instance().run(static_cast<int64_t>(space.tiles.size()), quantize);
}

// How a target is cut: panels of a piece, and groups of tiles that are pieces of their own.
struct Cut {
  int64_t panels, tile_groups;
};

// There are to be kPiecesPerThread pieces for each thread. Panels are cut first; tokens only where panels do not
// suffice, because every piece unpacks its panels anew.
Cut cut(const LinearTarget& target, bool is_direct, int64_t num_tokens) {
  const int64_t count = num_panels(target.matrix.rows), wanted = int64_t{kPiecesPerThread} * Pool::instance().size();
  const int64_t bytes = stored_type(target.matrix.type).panel_bytes(target.matrix.cols);
  const int64_t least = is_direct ? 1 : kPanelsPerStep;
  const int64_t most = is_direct ? std::max<int64_t>(1, kPieceBytes / bytes) : kPanelsPerPass;
  const int64_t panels = std::clamp<int64_t>(count / wanted, least, most);
  const int64_t groups = wanted / ((count + panels - 1) / panels);
  return {panels, is_direct ? 1 : std::clamp<int64_t>(groups, 1, std::max<int64_t>(1, num_tokens / kTokensPerGroup))};
}

void plan_pieces(const std::vector<LinearTarget>& targets, bool is_direct, Workspace& space) {
  const auto num_tiles = static_cast<int64_t>(space.tiles.size());
  const int64_t num_tokens = space.tiles.back().first_token + space.tiles.back().num_tokens;
  space.pieces.clear();
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const int64_t count = num_panels(targets[i].matrix.rows);
    const auto [panels, groups] = cut(targets[i], is_direct, num_tokens);
    for (int64_t begin = 0; begin < count; begin += panels) {
      for (int64_t g = 0; g < groups; ++g) {
        space.pieces.push_back({static_cast<int>(i), static_cast<int>(g * num_tiles / groups),
                                static_cast<int>((g + 1) * num_tiles / groups), begin,
                                std::min(begin + panels, count)});
      }
    }
  }
}

Product product_of(const LinearTarget& target, const Piece& piece, const float* x, const std::vector<Tile>& tiles) {
  const Tile* first = tiles.data() + piece.first_tile;
  const Tile& last = tiles[static_cast<std::size_t>(piece.end_tile) - 1];
  const PackedMatrix& matrix = target.matrix;
  return {.panels = matrix.panels,
          .panel_bytes = stored_type(matrix.type).panel_bytes(matrix.cols),
          .rows = matrix.rows,
          .cols = matrix.cols,
          .prefetch_bytes = prefetch_bytes(),
          .tiles = first,
          .num_tiles = piece.end_tile - piece.first_tile,
          .x = x,
          .first_token = first->first_token,
          .end_token = last.first_token + last.num_tokens,
          .bias = target.bias,
          .out = target.out};
}

}  // namespace

void linear(const float* x, int64_t num_tokens, int64_t cols, const std::vector<LinearTarget>& targets,
            LinearForm form) {
  if (num_tokens == 0 || targets.empty()) return;
  const int64_t most = active_isa() == Isa::avx512vnni ? kDirectTokensAvx512 : kDirectTokens;
  const bool is_direct = form == LinearForm::automatic ? num_tokens <= most : form == LinearForm::direct;
  const FormTable& kernels = active_kernels(is_direct);
  Workspace& space = workspace();
  plan_tiles(num_tokens, kernels.widths, space.tiles);
  const auto is_quantized_target = [](const LinearTarget& t) { return stored_type(t.matrix.type).is_quantized; };
  if (std::any_of(targets.begin(), targets.end(), is_quantized_target)) quantize_tiles(kernels, x, cols, space);
  plan_pieces(targets, is_direct, space);
  uint8_t* scratch = is_direct ? nullptr : space.scratch.at_least(kScratchBytes * Pool::instance().size());
  Pool::instance().run(static_cast<int64_t>(space.pieces.size()), [&](int64_t i, int worker) {
    const Piece& piece = space.pieces[static_cast<std::size_t>(i)];
    const LinearTarget& target = targets[static_cast<std::size_t>(piece.target)];
    kernels.multiply[target.matrix.type](product_of(target, piece, x, space.tiles), piece.begin, piece.end,
                                         scratch ? scratch + worker * kScratchBytes : nullptr);
  });
}

}  // namespace shale
