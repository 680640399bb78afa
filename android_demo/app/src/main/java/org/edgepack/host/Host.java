package org.edgepack.host;

import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadFactory;

/**
 * The host of docs/workers.md: requests of the page go to the app itself or to a worker, events come
 * back. Everything happens on one thread; only copying files has its own.
 */
public final class Host {
    public static final String VERSION = "0.1.0";
    private static final int LONGEST_LINE = 4 << 20, LONGEST_ID = 64;

    private final Platform platform;
    private final ExecutorService thread = executor("host"), copying = executor("import");
    private final Workers workers;
    private final ModelStore store;
    private final Jobs jobs;
    private final Trainings trainings;
    private final Map<String, Map<String, Object>> asking =
            new HashMap<String, Map<String, Object>>();
    private volatile String cancelledImport;
    private Bench bench;
    private String benchId;
    private Model loaded;

    /** `programs`: the folder of native libraries. `files`: where models are kept. */
    public Host(File programs, Set<String> features, File files, Platform platform) throws Failure {
        this.platform = platform;
        store = new ModelStore(new File(files, "models"));
        jobs = new Jobs(new File(files, "jobs"));
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
                Map<String, Object> request = asking.remove(id);
                if (request == null) return;
                if (files == null || files.isEmpty()) tell(id, "cancelled");
                else importFiles(request, files);
            }
        });
    }

    /** Another app gave files: they are imported, with events of the id `shared`. */
    public void shared(final List<? extends Picked> files) {
        run(new Step() {
            @Override
            public void run() {
                importFiles(Json.of("id", "shared", "kind", "model"), files);
            }
        });
    }

    /** The copy for the request `id` was written, or why not: null, or a text; "" if the person
     *  thought better of it. */
    public void saved(final String id, final String problem) {
        run(new Step() {
            @Override
            public void run() {
                if (problem == null) tell(id, "shared");
                else if (problem.isEmpty()) tell(id, "cancelled");
                else tell(id, "failed", "message", problem);
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
                copying.shutdown();
            }
        });
    }

    // ------------------------------------------------------------------------ requests

    private void answer(Map<String, Object> request) throws Failure {
        String to = Json.text(request, "to"), what = Json.text(request, "do");
        if (to.equals("app")) answerApp(what, request);
        else if (to.equals("chat")) answerChat(what, request);
        else if (to.equals("tune")) answerTune(what, request);
        else if (to.equals("bench")) answerBench(what, request);
        else throw new Failure("there is no worker of this name");
    }

    private void answerApp(String what, Map<String, Object> request) throws Failure {
        String id = Json.text(request, "id");
        if (what.equals("hello")) hello(id);
        else if (what.equals("models")) tell(id, "models", "models", models());
        else if (what.equals("import")) ask(request);
        else if (what.equals("remove")) remove(request);
        else if (what.equals("share")) share(request);
        else if (what.equals("jobs")) tell(id, "jobs", "jobs", listJobs());
        else if (what.equals("forget")) forget(request);
        else if (what.equals("device")) tellAll(id, "device", platform.device());
        else if (what.equals("cancel")) {
            cancelledImport = Json.text(request, "request");
            tell(id, "done");
        } else throw new Failure("the app has no request of this name");
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

    // ------------------------------------------------------------------------ of the app

    private void hello(String id) {
        Map<String, Object> can = Json.of("tune", workers.has("tune"), "bench",
                workers.has("bench"), "import", workers.has("chat"), "share", true);
        tell(id, "hello", "host", "android", "version", VERSION, "can", can, "device",
                platform.about());
    }

    private List<Object> models() {
        List<Object> found = new ArrayList<Object>();
        for (Model model : store.all()) found.add(model.describe());
        return found;
    }

    private List<Object> listJobs() {
        List<Object> found = new ArrayList<Object>();
        for (Jobs.Job job : jobs.all()) {
            boolean runs = trainings.isRunning(job.model(), job.adapter());
            Map<String, Object> request = runs ? trainings.request() : job.request;
            found.add(Json.of("model", job.model(), "adapter", job.adapter(), "request", request,
                    "running", runs));
        }
        return found;
    }

    private void remove(Map<String, Object> request) throws Failure {
        Model model = store.get(Json.text(request, "model"));
        String adapter = Json.textOrNull(request, "adapter");
        if (trainings.isRunning(model.id(), adapter)) {
            throw new Failure("it is being trained", "stop the training first");
        }
        if (adapter != null) {
            model.removeAdapter(adapter);
        } else {
            jobs.forget(model.id());
            store.remove(model);
        }
        tell(Json.text(request, "id"), "removed");
    }

    private void forget(Map<String, Object> request) throws Failure {
        String model = Json.text(request, "model"), adapter = Json.text(request, "adapter");
        if (trainings.isRunning(model, adapter)) {
            throw new Failure("it is being trained", "stop the training first");
        }
        jobs.forget(model, adapter);
        tell(Json.text(request, "id"), "forgotten");
    }

    private void share(Map<String, Object> request) throws Failure {
        String adapter = Json.text(request, "adapter");
        File file = store.get(Json.text(request, "model")).adapter(adapter);
        String plain = adapter.replaceAll("[^\\p{L}\\p{N} _.-]", "_").trim();
        platform.save(Json.text(request, "id"), file, plain + ".gguf");
    }

    private void ask(Map<String, Object> request) throws Failure {
        String id = Json.text(request, "id");
        if (Json.text(request, "kind").equals("adapter")) store.get(Json.text(request, "model"));
        asking.put(id, request);
        platform.choose(id);
    }

    // ------------------------------------------------------------------------ imports

    private void importFiles(
            final Map<String, Object> request, final List<? extends Picked> files) {
        final String id = String.valueOf(request.get("id"));
        final Import one = new Import(store, new ImportNeeds(id));
        copying.execute(new Runnable() {
            @Override
            public void run() {
                try {
                    Model of = "adapter".equals(request.get("kind"))
                            ? store.get(Json.text(request, "model")) : null;
                    later(id, "imported", "model", one.run(files, of).id());
                } catch (Failure failure) {
                    if (id.equals(cancelledImport)) later(id, "cancelled");
                    else later(id, "failed", "message", failure.getMessage(), "hint", failure.hint);
                }
            }
        });
    }

    private final class ImportNeeds implements Import.Needs {
        private final String id;
        private long told;

        ImportNeeds(String id) {
            this.id = id;
        }

        @Override
        public Map<String, Object> inspect(final File file) throws Failure {
            final Reply reply = new Reply();
            Host.this.run(new Step() {
                @Override
                public void run() {
                    try {
                        workers.ask("chat", Json.of("do", "inspect", "file", file.getPath()), reply);
                    } catch (Failure failure) {
                        reply.event(failure.event(null));
                    }
                }
            });
            return reply.await();
        }

        @Override
        public long freeBytes(File folder) {
            return platform.freeBytes(folder);
        }

        @Override
        public void progress(double share, String label) throws Failure {
            if (id.equals(cancelledImport)) throw new Failure("cancelled");
            long now = System.nanoTime();
            if (share < 1 && now - told < 100000000) return;  // ten times a second
            told = now;
            later(id, "progress", "share", share, "label", label);
        }
    }

    // ------------------------------------------------------------------------ events

    private void tell(String id, String event, Object... fields) {
        tellAll(id, event, Json.of(fields));
    }

    private void tellAll(String id, String event, Map<String, Object> fields) {
        Map<String, Object> whole = Json.of("id", id, "event", event, "from", "app");
        whole.putAll(fields);
        if (whole.containsKey("hint") && whole.get("hint") == null) whole.remove("hint");
        send(whole);
    }

    private void later(final String id, final String event, final Object... fields) {
        run(new Step() {
            @Override
            public void run() {
                tell(id, event, fields);
            }
        });
    }

    private void send(Map<String, Object> event) {
        platform.receive(Json.write(event));
    }

    // ------------------------------------------------------------------------ threads

    private interface Step {
        void run() throws Failure;
    }

    private void run(final Step step) {
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

    private static ExecutorService executor(final String name) {
        return Executors.newSingleThreadExecutor(new ThreadFactory() {
            @Override
            public Thread newThread(Runnable run) {
                Thread thread = new Thread(run, name);
                thread.setDaemon(true);
                return thread;
            }
        });
    }

    /** An answer that another thread waits for. */
    private static final class Reply implements Workers.Listener {
        private Map<String, Object> event;

        @Override
        public synchronized void event(Map<String, Object> event) {
            this.event = new LinkedHashMap<String, Object>(event);
            notifyAll();
        }

        synchronized Map<String, Object> await() throws Failure {
            try {
                while (event == null) wait();
            } catch (InterruptedException stopped) {
                throw new Failure("the app is ending");
            }
            if (!event.get("event").equals("failed")) return event;
            throw new Failure(String.valueOf(event.get("message")), Json.textOrNull(event, "hint"));
        }
    }
}
