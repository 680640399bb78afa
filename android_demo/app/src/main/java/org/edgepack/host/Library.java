package org.edgepack.host;

import java.io.File;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;

/** What the page asks the app itself: models and what they learnt, imports, the phone. On the host's
 *  thread, but for copying files. */
final class Library {
    private static final long PROGRESS_NANOSECONDS = 100000000;

    private final Host host;
    private final Platform platform;
    private final Workers workers;
    private final ModelStore store;
    private final Jobs jobs;
    private final Trainings trainings;
    private final ExecutorService copying = Host.executor("import");
    /** Requests that wait for the person's choice of files. */
    private final Map<String, Map<String, Object>> choosing =
            new HashMap<String, Map<String, Object>>();
    private volatile String cancelled;
    /** Files that another app gave, until they are imported. */
    private List<? extends Picked> offered;

    Library(Host host, Platform platform, Workers workers, ModelStore store, Jobs jobs,
            Trainings trainings) {
        this.host = host;
        this.platform = platform;
        this.workers = workers;
        this.store = store;
        this.jobs = jobs;
        this.trainings = trainings;
    }

    void answer(String what, Map<String, Object> request) throws Failure {
        String id = Json.text(request, "id");
        if (what.equals("hello")) {
            hello(id);
        } else if (what.equals("models")) {
            tell(id, "models", Json.of("models", models()));
        } else if (what.equals("import")) {
            choose(request);
        } else if (what.equals("remove")) {
            remove(request);
        } else if (what.equals("share")) {
            share(request);
        } else if (what.equals("jobs")) {
            tell(id, "jobs", Json.of("jobs", listJobs()));
        } else if (what.equals("forget")) {
            forget(request);
        } else if (what.equals("device")) {
            tell(id, "device", platform.device());
        } else if (what.equals("cancel")) {
            cancelled = Json.text(request, "request");
            tell(id, "done", Json.of());
        } else {
            throw new Failure("the app has no request of this name");
        }
    }

    void close() {
        copying.shutdown();
    }

    private void tell(String id, String event, Map<String, Object> fields) {
        Map<String, Object> whole = Json.of("id", id, "event", event, "from", "app");
        whole.putAll(fields);
        host.send(whole);
    }

    private void hello(String id) {
        Map<String, Object> can = Json.of("tune", workers.has("tune"), "bench",
                workers.has("bench"), "import", workers.has("chat"), "share", true);
        tell(id, "hello", Json.of("host", "android", "version", Host.VERSION, "can", can, "device",
                platform.about()));
        tellOffered();
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
        refuseRunning(model.id(), adapter);
        if (adapter != null) {
            model.removeAdapter(adapter);
        } else {
            jobs.forget(model.id());
            store.remove(model);
        }
        tell(Json.text(request, "id"), "removed", Json.of());
    }

    private void forget(Map<String, Object> request) throws Failure {
        String model = Json.text(request, "model"), adapter = Json.text(request, "adapter");
        refuseRunning(model, adapter);
        jobs.forget(model, adapter);
        tell(Json.text(request, "id"), "forgotten", Json.of());
    }

    private void refuseRunning(String model, String adapter) throws Failure {
        if (!trainings.isRunning(model, adapter)) return;
        throw new Failure("it is being trained", "stop the training first");
    }

    private void share(Map<String, Object> request) throws Failure {
        String adapter = Json.text(request, "adapter");
        File file = store.get(Json.text(request, "model")).adapter(adapter);
        String plain = adapter.replaceAll("[^\\p{L}\\p{N} _.-]", "_").trim();
        platform.save(Json.text(request, "id"), file, plain + ".gguf");
    }

    /** The copy was written: null, or why not; "" where the person thought better of it. */
    void saved(String id, String problem) {
        if (problem == null) tell(id, "shared", Json.of());
        else if (problem.isEmpty()) tell(id, "cancelled", Json.of());
        else fail(id, new Failure(problem));
    }

    // ------------------------------------------------------------------------ imports

    private void choose(Map<String, Object> request) throws Failure {
        String id = Json.text(request, "id");
        if (Json.text(request, "kind").equals("adapter")) store.get(Json.text(request, "model"));
        if (request.get("offered") == Boolean.TRUE) {
            if (offered == null) throw new Failure("the file is no longer offered");
            importFiles(request, offered);
            offered = null;
            return;
        }
        choosing.put(id, request);
        platform.choose(id);
    }

    void chosen(String id, List<? extends Picked> files) {
        Map<String, Object> request = choosing.remove(id);
        if (request == null) return;
        if (files == null || files.isEmpty()) tell(id, "cancelled", Json.of());
        else importFiles(request, files);
    }

    /** Another app gave files: the page is told, and imports them if the person wishes. */
    void offer(List<? extends Picked> files) {
        offered = files;
        tellOffered();
    }

    private void tellOffered() {
        if (offered == null) return;
        List<Object> names = new ArrayList<Object>();
        for (Picked file : offered) names.add(file.name());
        tell(null, "offered", Json.of("names", names));
    }

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
                    later(id, "imported", Json.of("model", one.run(files, of).describe()));
                } catch (final Failure failure) {
                    if (id.equals(cancelled)) later(id, "cancelled", Json.of());
                    else later(id, "failed", failure);
                }
            }
        });
    }

    private void fail(String id, Failure failure) {
        Map<String, Object> event = failure.event(id);
        event.put("from", "app");
        host.send(event);
    }

    private void later(final String id, final String event, final Object what) {
        host.run(new Host.Step() {
            @Override
            public void run() {
                if (what instanceof Failure) fail(id, (Failure) what);
                else tell(id, event, Json.object(what));
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
            host.run(new Host.Step() {
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
            if (id.equals(cancelled)) throw new Failure("the import was stopped");
            long now = System.nanoTime();
            if (share < 1 && now - told < PROGRESS_NANOSECONDS) return;
            told = now;
            later(id, "progress", Json.of("share", share, "label", label));
        }
    }

    /** An answer that the copying thread waits for. */
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
