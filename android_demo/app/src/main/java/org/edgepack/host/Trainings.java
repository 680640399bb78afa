package org.edgepack.host;

import java.io.File;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * One training at a time. Before the first of a model the model writes general text for replay. It
 * waits while the battery is low or the phone is hot: the worker is told to stop, which keeps its
 * state, and gets the same request again when that is over.
 */
final class Trainings {
    /** A chat worker of its own, which writes the text for replay. */
    static final String SCRIBE = "scribe";
    /** As edgepack/finetune/general.py has them. */
    private static final int REPLAYED = 16, LENGTH = 129;
    private static final int SCRIBE_CONTEXT = 2048;
    /** What a page says of a training; everything else is the host's. */
    private static final String[] FIELDS = {"id", "do", "mode", "examples", "options", "threads"};
    private static final double LEAST_BATTERY = 0.2;

    /** What a training tells. */
    interface Listener {
        /** An event of the page's request. */
        void event(Map<String, Object> event);

        /** For the notification; null when nothing runs or waits. */
        void state(Map<String, Object> state);
    }

    private final Workers workers;
    private final ModelStore store;
    private final Jobs jobs;
    private final Listener listener;

    private Jobs.Job job;
    private Model model;
    /** The id of what a worker is asked now, or null, and which worker that is. */
    private String asked, askedOf;
    private boolean stopping;
    private String waitsFor;
    private Map<String, Object> device = Json.of();
    private Map<String, Object> planned, step;

    Trainings(Workers workers, ModelStore store, Jobs jobs, Listener listener) {
        this.workers = workers;
        this.store = store;
        this.jobs = jobs;
        this.listener = listener;
    }

    boolean isRunning(String model, String adapter) {
        return job != null && job.model().equals(model)
                && (adapter == null || job.adapter().equals(adapter));
    }

    /** The page's request of the one that runs. */
    Map<String, Object> request() {
        return job.request;
    }

    /** Begin, or go on; of the one that runs, tell its events to the new request. */
    void train(Map<String, Object> request) throws Failure {
        String name = Json.text(request, "adapter");
        if (name.trim().isEmpty() || name.length() > 64) {
            throw new Failure("the name of the notes must have 1 to 64 characters");
        }
        Model wanted = store.get(Json.text(request, "model"));
        if (job != null) {
            if (!isRunning(wanted.id(), name)) {
                throw new Failure("another training is under way", "wait for it, or stop it");
            }
            job.request.put("id", Json.text(request, "id"));
            if (planned != null) tell(planned);
            if (step != null) tell(step);
            tellWaiting();
            return;
        }
        job = jobs.keep(request);
        model = wanted;
        planned = step = null;
        stopping = false;
        go();
    }

    /** What would be needed; does not begin. */
    void plan(Map<String, Object> request) throws Failure {
        Model model = store.get(Json.text(request, "model"));
        if (job != null) throw new Failure("a training is under way", "wait for it, or stop it");
        workers.post("tune", complete(request, model, null));
    }

    /** Stop as the person wishes; the state stays. False if it is no training's id. */
    boolean cancel(String id) {
        if (job == null || !id.equals(job.request.get("id"))) return false;
        stop();
        return true;
    }

    /** Stop as the person wishes. */
    void stop() {
        if (job == null) return;
        stopping = true;
        markStopped();
        if (asked == null) finish(Json.of("event", "ended", "reason", "cancelled"));
        else halt();
    }

    /** Go on with one that the app's end broke off. */
    void resume() {
        for (Jobs.Job left : jobs.all()) {
            Model of;
            try {
                of = store.get(left.model());
            } catch (Failure gone) {
                jobs.forget(left.model(), left.adapter());
                continue;
            }
            try {
                if (left.out().isFile()) take(left, of, null);
                else if (job == null && !left.isStopped()) train(left.request);
            } catch (Failure full) {
                // `jobs` still has it, with its notes; who goes on with it hears the reason
            }
        }
    }

    /** Battery and heat as they are now. */
    void setDevice(Map<String, Object> now) {
        device = now;
        if (job == null || stopping) return;
        String reason = reasonToWait();
        if (reason != null && waitsFor == null) {
            waitsFor = reason;
            tellWaiting();
            halt();
        } else if (reason == null && waitsFor != null && asked == null) {
            go();
        }
    }

    private String reasonToWait() {
        boolean low = Json.number(device, "battery", 1) < LEAST_BATTERY
                && device.get("charging") != Boolean.TRUE;
        return "severe".equals(device.get("thermal")) ? "heat" : low ? "battery" : null;
    }

    // ------------------------------------------------------------------------ its steps

    private void go() {
        waitsFor = reasonToWait();
        showState();
        if (waitsFor != null) {
            tellWaiting();
            return;
        }
        try {
            if (wantsReplay(job.request) && !model.replay().isFile()) loadScribe();
            else tune();
        } catch (Failure failure) {
            finish(failure.event(null));
        }
    }

    private static boolean wantsReplay(Map<String, Object> request) {
        Object options = request.get("options");
        return !(options instanceof Map) || Json.number(Json.object(options), "replay", 0.5) > 0;
    }

    /** Let the worker stop; `asked` becomes null when it has. */
    private void halt() {
        if (asked == null) return;
        try {
            workers.ask(askedOf, Json.of("do", "cancel", "request", asked), NOTHING);
        } catch (Failure gone) {
            // its open request fails anyway
        }
    }

    private void loadScribe() throws Failure {
        File factors = model.factors();
        askedOf = SCRIBE;
        asked = workers.ask(SCRIBE, Json.of("do", "load", "model", model.base().getPath(),
                "factors", factors == null ? null : factors.getPath(), "adapters", Json.of(),
                "context", SCRIBE_CONTEXT, "threads", 0), new Workers.Listener() {
            @Override
            public void event(Map<String, Object> event) {
                if (event.get("event").equals("loaded")) writeReplay();
                else if (event.get("event").equals("failed")) ended(event);
            }
        });
    }

    private void writeReplay() {
        if (stopping || waitsFor != null) {
            ended(Json.of("event", "ended", "reason", "cancelled"));
            return;
        }
        final File partial = new File(model.folder, "replay.json.partial");
        try {
            asked = workers.ask(SCRIBE, Json.of("do", "write", "count", REPLAYED, "tokens", LENGTH,
                    "seed", 0, "out", partial.getPath()), new Workers.Listener() {
                @Override
                public void event(Map<String, Object> event) {
                    String kind = String.valueOf(event.get("event"));
                    if (kind.equals("progress")) tellReplay(event.get("share"));
                    else if (kind.equals("written")) takeReplay(partial);
                    else if (kind.equals("failed")) ended(event);
                }
            });
        } catch (Failure failure) {
            ended(failure.event(null));
        }
    }

    private void takeReplay(File partial) {
        workers.rest(SCRIBE);
        boolean whole = !stopping && waitsFor == null;
        if (whole) whole = partial.renameTo(model.replay());
        else partial.delete();
        asked = null;
        if (whole) go();
        else ended(Json.of("event", "ended", "reason", "cancelled"));
    }

    private void tellReplay(Object share) {
        tell(Json.of("event", "progress", "share", share, "label", "replay"));
    }

    private void tune() throws Failure {
        askedOf = "tune";
        asked = workers.ask("tune", complete(job.request, model, job), new Workers.Listener() {
            @Override
            public void event(Map<String, Object> event) {
                String kind = String.valueOf(event.get("event"));
                if (kind.equals("ended") || kind.equals("failed")) {
                    ended(event);
                    return;
                }
                if (kind.equals("planned")) planned = event;
                if (kind.equals("step")) step = event;
                tell(event);
                if (kind.equals("step")) showState();
            }
        });
    }

    /** The page's request as the worker gets it: with paths. Without a job it is only planned. */
    private static Map<String, Object> complete(
            Map<String, Object> request, Model model, Jobs.Job job) {
        Map<String, Object> full = Json.of("mode", "stack");
        for (String key : FIELDS) if (request.containsKey(key)) full.put(key, request.get(key));
        File factors = model.factors();
        full.put("model", model.base().getPath());
        full.put("factors", factors == null ? null : factors.getPath());
        boolean replay = wantsReplay(request) && model.replay().isFile();
        full.put("replay", replay ? model.replay().getPath() : null);
        File folder = job == null ? model.folder : job.folder;
        full.put("out", new File(folder, "adapter.gguf").getPath());
        full.put("state", new File(folder, "state").getPath());
        full.put("marks", Json.of("edgepack.base.name", model.about.get("name"),
                "edgepack.base.digest", model.digest()));
        return full;
    }

    /** What the worker was asked has come to its end. */
    private void ended(Map<String, Object> event) {
        asked = null;
        workers.rest(SCRIBE);
        boolean cancelled = "cancelled".equals(event.get("reason"));
        if (cancelled && !stopping && waitsFor != null) {
            if (reasonToWait() == null) go();  // it was over before the worker had stopped
            else showState();
            return;
        }
        if (!cancelled && event.get("event").equals("ended")) {
            try {
                take(job, model, planned);
            } catch (Failure failure) {
                event = failure.event(null);
            }
        }
        finish(event);
    }

    /** Move the finished adapter to its model, and forget the job. */
    private void take(Jobs.Job done, Model of, Map<String, Object> plan) throws Failure {
        int given = Json.list(done.request, "examples").size();
        Object examples = plan == null ? Integer.valueOf(given) : plan.get("examples");
        of.addAdapter(done.adapter(), done.out(), Json.of("examples", examples,
                "created", System.currentTimeMillis() / 1000, "base_digest", of.digest()));
        jobs.forget(done.model(), done.adapter());
    }

    private void finish(Map<String, Object> event) {
        if (event.get("event").equals("failed")) markStopped();
        tell(event);
        workers.rest("tune");
        job = null;
        asked = waitsFor = null;
        listener.state(null);
    }

    /** What failed, or was stopped, is not begun again by itself. */
    private void markStopped() {
        try {
            jobs.setStopped(job, true);
        } catch (Failure full) {
            // then it is begun once more
        }
    }

    // ------------------------------------------------------------------------ what is told

    private void tell(Map<String, Object> event) {
        Map<String, Object> told = new LinkedHashMap<String, Object>(event);
        told.put("id", job.request.get("id"));
        told.put("from", "tune");
        listener.event(told);
    }

    private void tellWaiting() {
        if (waitsFor != null) tell(Json.of("event", "waiting", "reason", waitsFor));
        showState();
    }

    private void showState() {
        listener.state(Json.of("adapter", job.adapter(), "waiting", waitsFor,
                "step", step == null ? null : step.get("step"),
                "steps", step == null ? null : step.get("steps"),
                "seconds_left", step == null ? null : step.get("seconds_left")));
    }

    private static final Workers.Listener NOTHING = new Workers.Listener() {
        @Override
        public void event(Map<String, Object> event) {}
    };
}
