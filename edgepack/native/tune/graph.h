// One small ggml graph at a time: built, laid out in memory that all graphs share, computed.
//
// Nodes are computed in the order in which they are made. A node's memory is used again after its
// last use, so that a decoded matrix lives only until it was multiplied by.

#pragma once

#include <deque>
#include <exception>
#include <functional>
#include <initializer_list>
#include <map>
#include <mutex>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace worker::tune {

// Threads, and the memory of graphs.
class Engine {
  public:
    explicit Engine(int threads);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    const int threads;

  private:
    friend class Graph;
    ggml_threadpool *pool_;
    ggml_gallocr *memory_;
    std::vector<uint8_t> objects_, work_;
};

// What a node of our own does; every thread calls it with its number.
using Work = std::function<void(ggml_tensor *node, int thread, int threads)>;
using Tensor = ggml_tensor *;

class Graph {
  public:
    // With room for so many nodes and inputs.
    Graph(Engine &engine, size_t nodes);
    ~Graph();
    Graph(const Graph &) = delete;
    Graph &operator=(const Graph &) = delete;

    // Values that lie outside: n0 of them in a row, n1 rows.
    Tensor input(const float *values, int64_t n0, int64_t n1 = 1);
    Tensor input(const int32_t *values, int64_t n0);

    // A node of ggml's; computed after those that were added before.
    Tensor add(Tensor node);
    // A node of our own.
    Tensor add(int64_t n0, int64_t n1, int64_t n2, std::initializer_list<Tensor> from, Work work);
    // The same in place of `from`'s first, whose values it changes.
    Tensor change(std::initializer_list<Tensor> from, Work work);
    // A node whose values are wanted after `compute`.
    Tensor keep(Tensor node);

    // Rows of values of which each node writes some: `room` makes them, `into` lets a node write
    // from the value `first` of every row on, `filled` is the whole once all have been added.
    Tensor room(int64_t n0, int64_t n1, Tensor after);
    Tensor into(Tensor room, Tensor node, int64_t first);
    Tensor filled(Tensor room);

    void compute();
    size_t measure();  // bytes that the nodes need

    ggml_context *context() const { return context_; }

  private:
    Engine &engine_;
    ggml_context *context_;
    ggml_cgraph *graph_;
    std::deque<Work> works_;
    std::map<Tensor, Tensor> last_;  // of a room, the node that wrote last

    struct Job {
        Graph *graph;
        const Work *work;
    };
    std::deque<Job> jobs_;
    std::mutex failing_;
    std::exception_ptr failure_;

    static void run(ggml_tensor *node, int thread, int threads, void *job);
    void *job_of(Work work);
};

// This thread's share of `count` things, in whole runs of `run`: [first, last).
struct Share {
    Share(int64_t count, int thread, int threads, int64_t run = 1);
    int64_t first, last;
};

}  // namespace worker::tune
