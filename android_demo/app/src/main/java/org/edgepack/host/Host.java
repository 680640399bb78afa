package org.edgepack.host;

import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadFactory;

/**
 * The host of docs/workers.md: requests of the page go to the app itself (`Library`) or to a worker,
 * events come back. Everything happens on one thread; only copying files has its own.
 */
public final class Host {
    public static final String VERSION = "0.1.0";
    private static final int LONGEST_LINE = 4 << 20, LONGEST_ID = 64;

    private final Platform platform;
    private final ExecutorService thread = executor("host");
    private final Workers workers;
    private final ModelStore store;
    private final Library library;
    private final Trainings trainings;
    private Bench bench;
    private String benchId;
    private Model loaded;

    /** `programs`: the folder of native libraries. `files`: where models are kept. */
    public Host(File programs, Set<String> features, File files, Platform platform) throws Failure {
        this.platform = platform;
        store = new ModelStore(new File(files, "models"));
        Jobs jobs = new Jobs(new File(files, "jobs"));
        workers = new Workers(programs, features, new File(files, "work"), thread,
                new Workers.Listener() {
                    @Override
                    public void event(Map<String, Object> event) {
                        send(event);
                    }
                });
        trainings = new Trainings(workers, store, jobs, new Trainings.Listener() {
            @Override
            public void event(Map<String, Object> event) {
                send(event);
            }

            @Override
            public void state(Map<String, Object> state) {
                Host.this.platform.training(state);
            }
        });
        library = new Library(this, platform, workers, store, jobs, trainings);
        run(new Step() {
            @Override
            public void run() {
                trainings.setDevice(Host.this.platform.device());
                trainings.resume();
            }
        });
    }

    // ------------------------------------------------------------------------ from outside

    /** A request of the page, as JSON. */
    public void post(final String text) {
        run(new Step() {
            @Override
            public void run() {
                String id = null;
                try {
                    if (text.length() > LONGEST_LINE) throw new Failure("the request is too long");
                    Map<String, Object> request = Json.parseObject(text);
                    id = Json.text(request, "id");
                    if (id.length() > LONGEST_ID || id.startsWith("app:")) {
                        id = null;
                        throw new Failure("the request's id is not allowed");
                    }
                    answer(request);
                } catch (Failure failure) {
                    Map<String, Object> event = failure.event(id);
                    event.put("from", "app");
                    send(event);
                }
            }
        });
    }

    /** The person has chosen files for the request `id`; null: none. */
    public void chosen(final String id, final List<? extends Picked> files) {
        run(new Step() {
            @Override
            public void run() {
                library.chosen(id, files);
            }
        });
    }

    /** Another app gave files. */
    public void offer(final List<? extends Picked> files) {
        run(new Step() {
            @Override
            public void run() {
                library.offer(files);
            }
        });
    }

    /** The copy for the request `id` was written, or why not: null, or a text; "" if the person
     *  thought better of it. */
    public void saved(final String id, final String problem) {
        run(new Step() {
            @Override
            public void run() {
                library.saved(id, problem);
            }
        });
    }

    /** Battery or heat have changed. */
    public void deviceChanged() {
        run(new Step() {
            @Override
            public void run() {
                Map<String, Object> device = platform.device();
                trainings.setDevice(device);
                device.put("event", "device");
                device.put("id", null);
                device.put("from", "app");
                send(device);
            }
        });
    }

    /** The person has stopped the training outside the page. */
    public void stopTraining() {
        run(new Step() {
            @Override
            public void run() throws Failure {
                trainings.stop();
            }
        });
    }

    /** End all workers; the host is of no use then. */
    public void close() {
        run(new Step() {
            @Override
            public void run() {
                workers.kill();
                thread.shutdown();
                library.close();
            }
        });
    }

    // ------------------------------------------------------------------------ requests

    private void answer(Map<String, Object> request) throws Failure {
        String to = Json.text(request, "to"), what = Json.text(request, "do");
        if (to.equals("app")) library.answer(what, request);
        else if (to.equals("chat")) answerChat(what, request);
        else if (to.equals("tune")) answerTune(what, request);
        else if (to.equals("bench")) answerBench(what, request);
        else throw new Failure("there is no worker of this name");
    }

    private void answerChat(String what, Map<String, Object> request) throws Failure {
        request.remove("to");
        if (what.equals("load")) {
            Model model = store.get(Json.text(request, "model"));
            request.put("model", model.base().getPath());
            request.put("factors", model.factors() == null ? null : model.factors().getPath());
            request.put("adapters", paths(model, request));
            loaded = model;
        } else if (what.equals("adapters")) {
            Object named = request.remove("model");
            Model model = named instanceof String ? store.get((String) named) : loaded;
            if (model == null) throw new Failure("no model is loaded");
            request.put("adapters", paths(model, request));
        } else if (!what.equals("chat") && !what.equals("render") && !what.equals("cancel")) {
            throw new Failure("a page has no request of this name");
        }
        workers.post("chat", request);
    }

    private static Map<String, Object> paths(Model model, Map<String, Object> request)
            throws Failure {
        Map<String, Object> found = Json.of();
        for (String name : names(request.get("adapters"))) {
            found.put(name, model.adapter(name).getPath());
        }
        return found;
    }

    /** Names of adapters as a page gives them: a list, or the keys of an object. */
    static List<String> names(Object value) throws Failure {
        List<String> found = new ArrayList<String>();
        Iterable<?> all = value instanceof Map ? ((Map<?, ?>) value).keySet()
                : value instanceof List ? (List<?>) value : Collections.emptyList();
        for (Object name : all) {
            if (!(name instanceof String)) throw new Failure("adapters: names are texts");
            found.add((String) name);
        }
        return found;
    }

    private void answerTune(String what, Map<String, Object> request) throws Failure {
        String id = Json.text(request, "id");
        if (what.equals("train")) {
            trainings.train(request);
        } else if (what.equals("plan")) {
            trainings.plan(request);
        } else if (what.equals("cancel")) {
            boolean found = trainings.cancel(Json.text(request, "request"));
            if (!found) throw new Failure("there is no such training");
            Map<String, Object> done = Json.of("id", id, "event", "done", "from", "tune");
            send(done);
        } else {
            throw new Failure("a page has no request of this name");
        }
    }

    private void answerBench(String what, Map<String, Object> request) throws Failure {
        if (what.equals("cancel")) {
            if (bench != null && benchId.equals(request.get("request"))) bench.cancel();
            send(Json.of("id", request.get("id"), "event", "done", "from", "bench"));
            return;
        }
        if (!what.equals("bench")) throw new Failure("a page has no request of this name");
        if (bench != null) throw new Failure("a benchmark is under way");
        Bench next = new Bench(workers, thread, request,
                store.get(Json.text(request, "model")), new BenchNeeds());
        next.begin();
        bench = next;
        benchId = Json.text(request, "id");
    }

    private final class BenchNeeds implements Bench.Needs {
        @Override
        public void event(Map<String, Object> event) {
            send(event);
        }

        @Override
        public Map<String, Object> condition() {
            return platform.device();
        }

        @Override
        public Map<String, Object> about() {
            return platform.about();
        }

        @Override
        public void ended() {
            bench = null;
        }
    }

    // ------------------------------------------------------------------------ events

    void send(Map<String, Object> event) {
        platform.receive(Json.write(event));
    }

    // ------------------------------------------------------------------------ threads

    /** Something to do on the host's thread; its failure is told to the page. */
    interface Step {
        void run() throws Failure;
    }

    /** Do something on the host's thread. */
    void run(final Step step) {
        if (thread.isShutdown()) return;
        thread.execute(new Runnable() {
            @Override
            public void run() {
                try {
                    step.run();
                } catch (Failure failure) {
                    send(failure.event(null));
                }
            }
        });
    }

    static ExecutorService executor(final String name) {
        return Executors.newSingleThreadExecutor(new ThreadFactory() {
            @Override
            public Thread newThread(Runnable run) {
                Thread thread = new Thread(run, name);
                thread.setDaemon(true);
                return thread;
            }
        });
    }
}
