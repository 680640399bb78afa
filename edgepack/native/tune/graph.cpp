#include "graph.h"

#include <algorithm>

#include "../shared/fields.h"
#include "ggml-backend.h"

namespace worker::tune {

Engine::Engine(int threads) : threads(threads) {
    ggml_cpu_init();
    const ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    ggml_threadpool_params mine = params;
    pool_ = ggml_threadpool_new(&mine);
    memory_ = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
    if (!pool_ || !memory_) throw Failure("there is no memory to begin with");
}

Engine::~Engine() {
    ggml_threadpool_free(pool_);
    ggml_gallocr_free(memory_);
}

Graph::Graph(Engine &engine, size_t nodes) : engine_(engine) {
    const size_t size = ggml_tensor_overhead() * 2 * nodes + ggml_graph_overhead_custom(nodes, false);
    if (engine.objects_.size() < size) engine.objects_.resize(size);
    context_ = ggml_init({engine.objects_.size(), engine.objects_.data(), /*no_alloc=*/true});
    graph_ = ggml_new_graph_custom(context_, nodes, false);
}

Graph::~Graph() { ggml_free(context_); }

Tensor Graph::input(const float *values, int64_t n0, int64_t n1) {
    Tensor node = ggml_new_tensor_2d(context_, GGML_TYPE_F32, n0, n1);
    node->data = const_cast<float *>(values);
    return node;
}

Tensor Graph::input(const int32_t *values, int64_t n0) {
    Tensor node = ggml_new_tensor_1d(context_, GGML_TYPE_I32, n0);
    node->data = const_cast<int32_t *>(values);
    return node;
}

Tensor Graph::add(Tensor node) {
    ggml_build_forward_expand(graph_, node);
    return node;
}

Tensor Graph::add(int64_t n0, int64_t n1, int64_t n2, std::initializer_list<Tensor> from,
                  Work work) {
    std::vector<Tensor> args(from);
    return add(ggml_custom_4d(context_, GGML_TYPE_F32, n0, n1, n2, 1, args.data(), args.size(), run,
                              GGML_N_TASKS_MAX, job_of(std::move(work))));
}

Tensor Graph::change(std::initializer_list<Tensor> from, Work work) {
    std::vector<Tensor> args(from);
    return add(ggml_custom_inplace(context_, args[0], args.data() + 1, args.size() - 1, run,
                                   GGML_N_TASKS_MAX, job_of(std::move(work))));
}

Tensor Graph::keep(Tensor node) {
    ggml_set_output(node);
    return node;
}

Tensor Graph::room(int64_t n0, int64_t n1, Tensor after) {
    return add(n0, n1, 1, {after}, [](Tensor, int, int) {});
}

Tensor Graph::into(Tensor room, Tensor node, int64_t first) {
    // As ggml's own nodes that work in place: the node becomes a view of the room. The node before
    // is one of its sources, so that the allocator sees who uses the room.
    node->view_src = room;
    node->view_offs = first * sizeof(float);
    node->nb[1] = room->nb[1];
    node->nb[2] = node->nb[3] = room->nb[1] * room->ne[1];
    node->src[GGML_MAX_SRC - 1] = last_.count(room) ? last_[room] : room;
    last_[room] = node;
    return add(node);
}

Tensor Graph::filled(Tensor room) {
    Tensor whole = ggml_view_tensor(context_, room);
    whole->op = GGML_OP_VIEW;
    whole->src[0] = room;
    whole->src[1] = last_.at(room);
    return add(whole);
}

void Graph::compute() {
    if (!ggml_gallocr_alloc_graph(engine_.memory_, graph_))
        throw Failure("there is not enough memory for a step", "shorter examples need less");
    ggml_cplan plan = ggml_graph_plan(graph_, engine_.threads, engine_.pool_);
    if (engine_.work_.size() < plan.work_size) engine_.work_.resize(plan.work_size);
    plan.work_data = engine_.work_.data();
    const ggml_status status = ggml_graph_compute(graph_, &plan);
    if (failure_) std::rethrow_exception(failure_);
    if (status != GGML_STATUS_SUCCESS) throw Failure("ggml could not compute a step");
}

size_t Graph::measure() {
    size_t size = 0;
    ggml_gallocr_reserve_n_size(engine_.memory_, graph_, nullptr, nullptr, &size);
    return size;
}

void *Graph::job_of(Work work) {
    works_.push_back(std::move(work));
    jobs_.push_back({this, &works_.back()});
    return &jobs_.back();
}

void Graph::run(ggml_tensor *node, int thread, int threads, void *data) {
    const auto &job = *static_cast<Job *>(data);
    try {
        (*job.work)(node, thread, threads);
    } catch (...) {  // must not pass through ggml
        const std::lock_guard<std::mutex> lock(job.graph->failing_);
        if (!job.graph->failure_) job.graph->failure_ = std::current_exception();
    }
}

Share::Share(int64_t count, int thread, int threads, int64_t run) {
    const int64_t runs = (count + run - 1) / run;
    first = std::min(count, runs * thread / threads * run);
    last = std::min(count, runs * (thread + 1) / threads * run);
}

}  // namespace worker::tune
