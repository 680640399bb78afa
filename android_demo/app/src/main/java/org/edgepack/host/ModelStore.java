package org.edgepack.host;

import java.io.File;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The imported models: `models/ID/`, whole or absent. ID is the start of the base's sha256. */
final class ModelStore {
    private final File root;

    ModelStore(File root) throws Failure {
        this.root = Files.folder(root);
        Files.remove(incoming());
        for (File folder : Files.children(root)) {
            if (!new File(folder, Model.ABOUT).isFile()) Files.remove(folder);
        }
    }

    /** Where imports are copied to; emptied when the app starts. */
    File incoming() {
        return new File(root, ".incoming");
    }

    List<Model> all() {
        List<Model> found = new ArrayList<Model>();
        for (File folder : Files.children(root)) {
            Model model = read(folder);
            if (model != null) found.add(model);
        }
        return found;
    }

    Model get(String id) throws Failure {
        boolean plain = id.matches("[0-9a-f]{16}");
        Model model = plain ? read(new File(root, id)) : null;
        if (model == null) throw new Failure("this model is not on the phone", "import it");
        return model;
    }

    private static Model read(File folder) {
        try {
            return new Model(folder, Files.read(new File(folder, Model.ABOUT)));
        } catch (Failure none) {
            return null;
        }
    }

    /** Take copied files as a model. One that is there already keeps its adapters, and gets what it
     *  did not have. `base` is null for factors alone, which then belong to the model `about`. */
    Model add(File base, File factors, Map<String, Object> about) throws Failure {
        String id = Json.text(about, "sha256").substring(0, 16);
        File folder = new File(root, id);
        Map<String, Object> known = new LinkedHashMap<String, Object>(about);
        Model old = read(folder);
        if (old != null) {
            Object has = old.about.get("factors_sha256");
            Object gets = about.get("factors_sha256");
            if (has != null && gets != null && !has.equals(gets)) {
                throw new Failure("this model is here with other factors",
                        "remove it first; what it learnt goes with it");
            }
            if (gets == null) known.put("factors_sha256", has);
            if (gets != null && has == null) old.replay().delete();  // another model wrote it
        }
        Files.folder(folder);
        if (base != null) Files.rename(base, new File(folder, Model.BASE));
        if (factors != null) Files.rename(factors, new File(folder, Model.FACTORS));
        Files.write(new File(folder, Model.ABOUT), known);
        return get(id);
    }

    void remove(Model model) throws Failure {
        File aside = new File(root, ".removed-" + model.id());
        Files.remove(aside);
        Files.rename(model.folder, aside);  // a killed app leaves no half model
        Files.remove(aside);
    }
}
