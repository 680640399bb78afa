package org.edgepack.host;

import java.io.File;
import java.text.SimpleDateFormat;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Date;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TimeZone;
import java.util.concurrent.Executor;

/**
 * One benchmark: rounds of `edgepack-bench`, each a process of its own, then the limits of the
 * device. What it finds has the form of edgepack/bench/results.py, so that `edgepack bench` reads it.
 */
final class Bench implements Worker.Listener {
    private static final int ROWS = 2048, COLUMNS = 4096, LIMIT_ROUNDS = 3;
    private static final String[] PLAIN = {"f16", "f32", "q8_0"};

    /** What it needs of the rest. */
    interface Needs {
        void event(Map<String, Object> event);

        /** Battery and heat now. */
        Map<String, Object> condition();

        Map<String, Object> about();

        void ended();
    }

    private final Workers workers;
    private final Executor host;
    private final Needs needs;
    private final Map<String, Object> request, work, before;
    private final Model model;
    private final List<File> adapters = new ArrayList<File>();
    private final List<Object> cases = new ArrayList<Object>();
    private final List<String> jobs = new ArrayList<String>();
    private final List<Map<String, Object>> events = new ArrayList<Map<String, Object>>();
    private final List<List<Map<String, Object>>> turns =
            new ArrayList<List<Map<String, Object>>>();
    private final int rounds, threads;
    private Worker worker;
    private boolean cancelled;

    Bench(Workers workers, Executor host, Map<String, Object> request, Model model, Needs needs)
            throws Failure {
        this.workers = workers;
        this.host = host;
        this.needs = needs;
        this.request = request;
        this.model = model;
        rounds = within("rounds", 1, 100, 3);
        threads = within("threads", 0, 64, 0) > 0 ? within("threads", 1, 64, 1) : fastCores();
        addCases();
        List<Object> pairs = new ArrayList<Object>();
        for (String name : Host.names(request.get("adapters"))) attach(model.adapter(name), pairs);
        if (model.factors() != null) attachFactors(pairs);
        work = Work.of(model.base(), adapters);
        Map<String, Object> job = Json.of("version", 1, "job", "model", "model",
                model.base().getPath(), "adapters", pairs, "threads", threads, "cases", cases);
        for (int i = 0; i < rounds; i++) jobs.add(Json.write(job));
        jobs.add(Json.write(Json.of("version", 1, "job", "memory", "threads",
                Arrays.asList(threads), "bytes", 1 << 28, "rounds", LIMIT_ROUNDS)));
        jobs.add(Json.write(Json.of("version", 1, "job", "multiply", "threads", threads, "types",
                types(), "rows", ROWS, "columns", COLUMNS, "batches", Arrays.asList(1, 256),
                "bytes", 1 << 27, "rounds", LIMIT_ROUNDS)));
        before = needs.condition();
    }

    /** Number of cores that llama.cpp would use: half of them, as phones have slow ones. */
    private static int fastCores() {
        return Math.max(1, Runtime.getRuntime().availableProcessors() / 2);
    }

    private int within(String key, int least, int most, int otherwise) throws Failure {
        double value = Json.number(request, key, otherwise);
        if (value < least || value > most || value != Math.rint(value)) {
            throw new Failure(key + " must be a number from " + least + " to " + most);
        }
        return (int) value;
    }

    private void addCases() throws Failure {
        int prompt = within("prompt", 0, 4096, 128), decode = within("decode", 0, 4096, 32);
        if (prompt > 0) cases.add(oneCase("prompt", prompt));
        if (decode > 0) cases.add(oneCase("decode", decode));
        if (cases.isEmpty()) throw new Failure("nothing to measure");
    }

    private static Map<String, Object> oneCase(String kind, int tokens) {
        return Json.of("kind", kind, "tokens", tokens, "depth", 0, "batch", 1);
    }

    private void attach(File file, List<Object> pairs) {
        adapters.add(file);
        pairs.add(Arrays.<Object>asList(file.getPath(), 1.0));
    }

    /** An adapter that is L·R + ΔW leaves nothing of the factors (`gguf_check.factors_scale`). */
    private void attachFactors(List<Object> pairs) throws Failure {
        for (File file : adapters) {
            if (GgufHeader.read(file).has("edgepack.holds_factors")) return;
        }
        attach(model.factors(), pairs);
    }

    /** Types whose products are timed, in order. */
    private List<String> types() {
        List<String> found = new ArrayList<String>(Arrays.asList(PLAIN));
        for (String type : Json.object(work.get("types")).keySet()) {
            if (!found.contains(type)) found.add(type);
        }
        Collections.sort(found);
        return found;
    }

    // ------------------------------------------------------------------------ turns

    void begin() throws Failure {
        worker = workers.start("bench", Collections.singletonList(jobs.get(turns.size())), this);
    }

    void cancel() {
        cancelled = true;
        if (worker != null) worker.kill();
    }

    @Override
    public void event(Worker from, final Map<String, Object> event) {
        host.execute(new Runnable() {
            @Override
            public void run() {
                heard(event);
            }
        });
    }

    private void heard(Map<String, Object> event) {
        events.add(event);
        if (!"case".equals(event.get("event"))) return;
        Map<String, Object> timed = Json.object(cases.get((int) Json.number(event, "index", 0)));
        tell(Json.of("event", "case", "round", turns.size(), "kind", timed.get("kind"),
                "tokens", timed.get("tokens"), "seconds", event.get("seconds")));
    }

    @Override
    public void ended(Worker from, List<String> open, final String lastWords) {
        host.execute(new Runnable() {
            @Override
            public void run() {
                next(lastWords);
            }
        });
    }

    private void next(String lastWords) {
        Map<String, Object> last = events.isEmpty() ? null : events.get(events.size() - 1);
        try {
            if (cancelled) throw new Failure("the benchmark was stopped");
            if (last == null || !"ended".equals(last.get("event"))) {
                throw new Failure(lastWords != null ? lastWords
                        : "the program bench ended by itself",
                        "the phone may have too little memory for it");
            }
            turns.add(new ArrayList<Map<String, Object>>(events));
            events.clear();
            if (turns.size() < jobs.size()) {
                begin();
                return;
            }
            tell(Json.of("event", "benched", "bench", result()));
        } catch (Failure failure) {
            tell(failure.event(null));
        }
        needs.ended();
    }

    private void tell(Map<String, Object> event) {
        event.put("id", request.get("id"));
        event.put("from", "bench");
        needs.event(event);
    }

    // ------------------------------------------------------------------------ what was found

    private Map<String, Object> result() {
        SimpleDateFormat format = new SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'+00:00'", Locale.ROOT);
        format.setTimeZone(TimeZone.getTimeZone("UTC"));
        List<Map<String, Object>> memory = all(turns.subList(rounds, rounds + 1), "memory");
        Map<String, Object> ceilings = Json.of(
                "memory", Arrays.asList(Json.of("threads", threads, "bytes_per_second",
                        column(memory, "bytes_per_second"))),
                "products", products(all(turns.subList(rounds + 1, rounds + 2), "product")));
        return Json.of("schema_version", 1, "edgepack", Host.VERSION, "date",
                format.format(new Date()), "device", needs.about(), "rounds", rounds, "models",
                Arrays.asList(modelResult()), "ceilings", ceilings, "quiet",
                Json.of("before", before, "after", needs.condition()), "remarks",
                new ArrayList<Object>());
    }

    private Map<String, Object> modelResult() {
        List<List<Map<String, Object>>> own = turns.subList(0, rounds);
        Map<String, Object> started = all(own, "started").get(0);
        List<Map<String, Object>> loaded = all(own, "loaded"), ended = all(own, "ended");
        List<Object> peaks = new ArrayList<Object>();
        for (Map<String, Object> end : ended) peaks.add(Json.object(end.get("memory")).get("peak"));
        Map<String, Object> loading = Json.of("threads", threads, "seconds",
                column(loaded, "seconds"), "before", started.get("memory"), "loaded",
                loaded.get(rounds - 1).get("memory"), "steady",
                ended.get(rounds - 1).get("memory"), "peak", peaks);
        List<Object> timings = new ArrayList<Object>();
        for (int i = 0; i < cases.size(); i++) timings.add(timing(own, i));
        long bytes = model.base().length();
        for (File adapter : adapters) bytes += adapter.length();
        return Json.of("name", model.about.get("name"), "runtime", started.get("runtime"),
                "features", started.get("features"), "file", Model.BASE, "bytes", bytes,
                "work", work, "loading", Arrays.asList(loading), "timings", timings);
    }

    private Map<String, Object> timing(List<List<Map<String, Object>>> own, int index) {
        List<Map<String, Object>> timed = new ArrayList<Map<String, Object>>();
        for (Map<String, Object> event : all(own, "case")) {
            if ((int) Json.number(event, "index", -1) == index) timed.add(event);
        }
        return Json.of("case", cases.get(index), "threads", threads, "seconds",
                column(timed, "seconds"), "memory", timed.get(timed.size() - 1).get("memory"));
    }

    private List<Object> products(List<Map<String, Object>> events) {
        Map<String, Map<String, Object>> found = new LinkedHashMap<String, Map<String, Object>>();
        for (Map<String, Object> event : events) {
            String key = event.get("type") + " " + event.get("batch");
            if (!found.containsKey(key)) {
                found.put(key, Json.of("type", event.get("type"), "threads", threads, "batch",
                        event.get("batch"), "rows", ROWS, "columns", COLUMNS, "bytes",
                        event.get("bytes"), "seconds", new ArrayList<Object>()));
            }
            @SuppressWarnings("unchecked")
            List<Object> seconds = (List<Object>) found.get(key).get("seconds");
            seconds.add(event.get("seconds"));
        }
        return new ArrayList<Object>(found.values());
    }

    private static List<Map<String, Object>> all(List<List<Map<String, Object>>> turns, String kind) {
        List<Map<String, Object>> found = new ArrayList<Map<String, Object>>();
        for (List<Map<String, Object>> turn : turns) {
            for (Map<String, Object> event : turn) {
                if (kind.equals(event.get("event"))) found.add(event);
            }
        }
        return found;
    }

    private static List<Object> column(List<Map<String, Object>> events, String key) {
        List<Object> found = new ArrayList<Object>();
        for (Map<String, Object> event : events) found.add(event.get(key));
        return found;
    }
}
