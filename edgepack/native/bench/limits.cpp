// The jobs `memory` and `multiply`: how fast this machine reads, and how fast ggml multiplies.

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace worker {
namespace {

constexpr int DISTINCT = 8;  // rows that are quantized; kernels take the same time for all values

// Seconds in which threads read a block, each its own part, from the first start to the last end.
double read_once(const std::vector<uint64_t> &block, int threads) {
    std::vector<uint64_t> sums(threads);
    std::vector<std::thread> workers;
    const Clock clock;
    for (int t = 0; t < threads; ++t) {
        workers.emplace_back([&, t] {
            const uint64_t *data = block.data() + block.size() * t / threads;
            const uint64_t *end = block.data() + block.size() * (t + 1) / threads;
            uint64_t sum = 0;
            while (data < end) sum += *data++;
            sums[t] = sum;
        });
    }
    for (auto &worker : workers) worker.join();
    const double seconds = clock.seconds();
    for (const uint64_t sum : sums) checked(sum != 0, "a block of ones has no sum");
    return seconds;
}

ggml_type type_named(const std::string &name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        std::string known = ggml_blck_size(type) > 0 ? ggml_type_name(type) : "";
        std::transform(known.begin(), known.end(), known.begin(), ::tolower);
        if (!name.empty() && known == name) return type;
    }
    throw std::runtime_error("ggml has no type " + name);
}

// Bytes of a random W [rows, columns].
std::vector<uint8_t> random_weight(ggml_type type, int64_t rows, int64_t columns) {
    std::minstd_rand random;
    std::normal_distribution<float> normal;
    std::vector<float> values(DISTINCT * columns), importance(columns, 1.0F);
    for (float &value : values) value = normal(random);
    const size_t stride = ggml_row_size(type, columns);
    std::vector<uint8_t> data(DISTINCT * stride), all;
    ggml_quantize_chunk(type, values.data(), data.data(), 0, DISTINCT, columns, importance.data());
    for (int64_t row = 0; row < rows; ++row) {
        const auto first = data.begin() + static_cast<int64_t>(row % DISTINCT * stride);
        all.insert(all.end(), first, first + static_cast<int64_t>(stride));
    }
    return all;
}

struct Free {
    void operator()(ggml_context *context) const { ggml_free(context); }
    void operator()(ggml_backend *backend) const { ggml_backend_free(backend); }
    void operator()(ggml_backend_buffer *buffer) const { ggml_backend_buffer_free(buffer); }
};
using Context = std::unique_ptr<ggml_context, Free>;
using Backend = std::unique_ptr<ggml_backend, Free>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Free>;

Context make_context(size_t tensors) {
    const size_t size =
        ggml_tensor_overhead() * tensors + ggml_graph_overhead_custom(tensors, false);
    return Context(checked(ggml_init({size, nullptr, true}), "no memory"));
}

// Where llama.cpp would keep a weight: in a layout for this CPU, if there is one for its type.
ggml_backend_buffer_type_t weight_buffer_type(ggml_backend_t cpu, ggml_type type, int64_t rows,
                                              int64_t columns) {
    const auto device = ggml_backend_get_device(cpu);
    const auto registry = ggml_backend_dev_backend_reg(device);
    void *address = ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts");
    const auto list = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(address);
    for (auto *kind = list ? list(device) : nullptr; kind && *kind; ++kind) {
        const Context context = make_context(8);
        const Buffer none(ggml_backend_buft_alloc_buffer(*kind, 0));
        ggml_tensor *W = ggml_new_tensor_2d(context.get(), type, columns, rows);
        ggml_tensor *X = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, columns, 512);
        W->buffer = none.get();
        if (ggml_backend_dev_supports_op(device, ggml_mul_mat(context.get(), W, X))) return *kind;
    }
    return ggml_backend_get_default_buffer_type(cpu);
}

// A graph of products W·X with different W, so that each W comes from memory.
class Products {
  public:
    struct Shape {
        int64_t rows, columns, batch, count;
    };

    Products(ggml_backend_t cpu, ggml_type type, Shape shape, const std::vector<uint8_t> &W)
        : cpu_(cpu),
          count_(shape.count),
          weights_(make_context(shape.count)),
          others_(make_context(2 * shape.count + 8)) {
        graph_ = ggml_new_graph_custom(others_.get(), shape.count + 8, false);
        auto *X = ggml_new_tensor_2d(others_.get(), GGML_TYPE_F32, shape.columns, shape.batch);
        std::vector<ggml_tensor *> Ws(shape.count);
        for (auto &tensor : Ws) {
            tensor = ggml_new_tensor_2d(weights_.get(), type, shape.columns, shape.rows);
            ggml_build_forward_expand(graph_, ggml_mul_mat(others_.get(), tensor, X));
        }
        const auto kind = weight_buffer_type(cpu, type, shape.rows, shape.columns);
        buffers_[0].reset(checked(ggml_backend_alloc_ctx_tensors_from_buft(weights_.get(), kind),
                                  "no memory for the matrices"));
        buffers_[1].reset(checked(ggml_backend_alloc_ctx_tensors(others_.get(), cpu),
                                  "no memory for the products"));
        for (auto *tensor : Ws) ggml_backend_tensor_set(tensor, W.data(), 0, W.size());
        const std::vector<float> ones(shape.columns * shape.batch, 1.0F);
        ggml_backend_tensor_set(X, ones.data(), 0, ones.size() * sizeof(float));
    }

    // Seconds of one product.
    double time() const {
        const Clock clock;
        checked(ggml_backend_graph_compute(cpu_, graph_) == GGML_STATUS_SUCCESS,
                "ggml cannot multiply it here");
        return clock.seconds() / static_cast<double>(count_);
    }

  private:
    ggml_backend_t cpu_;
    int64_t count_;
    Context weights_, others_;
    Buffer buffers_[2];
    ggml_cgraph *graph_ = nullptr;
};

}  // namespace

void read_memory(const json &job) {
    const std::vector<uint64_t> block(job.at("bytes").get<size_t>() / sizeof(uint64_t), 1);
    const double bytes = static_cast<double>(block.size() * sizeof(uint64_t));
    for (const int threads : job.at("threads")) {
        checked(threads >= 1 && block.size() >= static_cast<size_t>(threads),
                "no block for each thread");
        read_once(block, threads);
        for (int round = 0; round < job.at("rounds"); ++round) {
            const double rate = bytes / read_once(block, threads);
            say({{"event", "memory"}, {"threads", threads}, {"bytes_per_second", rate}});
        }
    }
    say_ended();
}

void multiply(const json &job) {
    const int64_t rows = job.at("rows"), columns = job.at("columns"), bytes = job.at("bytes");
    std::vector<std::pair<std::string, ggml_type>> types;
    for (const std::string name : job.at("types")) types.emplace_back(name, type_named(name));
    const Backend cpu(checked(ggml_backend_cpu_init(), "no CPU"));
    ggml_backend_cpu_set_n_threads(cpu.get(), job.at("threads"));
    for (const auto &[name, type] : types) {
        checked(columns % ggml_blck_size(type) == 0, name + ": no whole blocks in a row");
        const auto W = random_weight(type, rows, columns);
        const auto size = static_cast<int64_t>(W.size());
        for (const int batch : job.at("batches")) {
            const int64_t count = batch == 1 ? std::max<int64_t>(1, bytes / size) : 1;
            const Products products(cpu.get(), type, {rows, columns, batch, count}, W);
            for (int round = 0; round <= job.at("rounds"); ++round) {
                const double seconds = products.time();
                if (round == 0) continue;  // the first one allocates
                say({{"event", "product"},
                     {"type", name},
                     {"batch", batch},
                     {"seconds", seconds},
                     {"bytes", size}});
            }
        }
    }
    say_ended();
}

}  // namespace worker
