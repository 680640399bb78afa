package org.edgepack.host;

import java.io.File;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Trainings that were begun and not ended: `jobs/…/` keeps the request, the worker's state, and the
 *  adapter from when it is written until it is taken. */
final class Jobs {
    /** One training. */
    static final class Job {
        final File folder;
        final Map<String, Object> request;

        private Job(File folder, Map<String, Object> request) {
            this.folder = folder;
            this.request = request;
        }

        String model() {
            return String.valueOf(request.get("model"));
        }

        String adapter() {
            return String.valueOf(request.get("adapter"));
        }

        File state() {
            return new File(folder, "state");
        }

        File out() {
            return new File(folder, "adapter.gguf");
        }

        /** Whether the person stopped it, so that it does not go on by itself. */
        boolean isStopped() {
            return new File(folder, "stopped").exists();
        }
    }

    private final File root;

    Jobs(File root) throws Failure {
        this.root = Files.folder(root);
    }

    /** Keep a request. One of the same model and adapter goes on if it is the same in all but its
     *  `id`; another one takes its place, and its state is removed. */
    Job keep(Map<String, Object> request) throws Failure {
        File folder = folder(Json.text(request, "model"), Json.text(request, "adapter"));
        File file = new File(folder, "job.json");
        if (folder.isDirectory() && !same(request, file)) Files.remove(folder);
        Files.folder(folder);
        Files.write(file, request);
        setStopped(new Job(folder, request), false);
        return new Job(folder, request);
    }

    private static boolean same(Map<String, Object> request, File file) {
        try {
            return content(request).equals(content(Files.read(file)));
        } catch (Failure damaged) {
            return false;
        }
    }

    private static String content(Map<String, Object> request) {
        Map<String, Object> content = new LinkedHashMap<String, Object>(request);
        content.remove("id");
        return Json.write(content);
    }

    List<Job> all() {
        List<Job> found = new ArrayList<Job>();
        for (File folder : Files.children(root)) {
            try {
                found.add(new Job(folder, Files.read(new File(folder, "job.json"))));
            } catch (Failure damaged) {
                Files.remove(folder);
            }
        }
        return found;
    }

    void setStopped(Job job, boolean stopped) throws Failure {
        File mark = new File(job.folder, "stopped");
        if (stopped) Files.folder(mark);
        else mark.delete();
    }

    void forget(String model, String adapter) {
        Files.remove(folder(model, adapter));
    }

    /** Forget all of a model. */
    void forget(String model) {
        for (Job job : all()) if (job.model().equals(model)) Files.remove(job.folder);
    }

    private File folder(String model, String adapter) {
        return new File(root, Files.sha256(model + "\n" + adapter).substring(0, 16));
    }
}
