package org.edgepack.demo;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.content.SharedPreferences;
import android.content.pm.ApplicationInfo;
import android.content.pm.PackageManager;
import android.content.res.Configuration;
import android.graphics.Color;
import android.net.Uri;
import android.os.Build;
import android.os.Bundle;
import android.view.View;
import android.view.WindowInsets;
import android.webkit.ValueCallback;
import android.webkit.WebSettings;
import android.webkit.WebView;
import android.widget.FrameLayout;
import android.widget.TextView;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.ArrayList;
import java.util.List;
import org.edgepack.host.Host;

/** One WebView with one local page; and what needs the screen: choosing, saving, asking. */
public final class MainActivity extends Activity {
    private static final int CHOOSE = 1, SAVE = 2, NOTIFICATIONS = 3, ANDROID_13 = 33;
    private static final String POST_NOTIFICATIONS = "android.permission.POST_NOTIFICATIONS";

    private Host host;
    private FrameLayout frame;
    private WebView view;
    private Bridge bridge;
    private String asked;
    private File saved;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        frame = new FrameLayout(this);
        frame.setOnApplyWindowInsetsListener(new View.OnApplyWindowInsetsListener() {
            @Override
            @SuppressWarnings("deprecation")  // what replaces it is API 30
            public WindowInsets onApplyWindowInsets(View frame, WindowInsets insets) {
                frame.setPadding(insets.getSystemWindowInsetLeft(),
                        insets.getSystemWindowInsetTop(), insets.getSystemWindowInsetRight(),
                        insets.getSystemWindowInsetBottom());
                return insets.consumeSystemWindowInsets();
            }
        });
        setContentView(frame);
        host = App.of(this).host();
        if (host == null) {
            TextView text = new TextView(this);
            text.setText(App.of(this).failure().getMessage());
            frame.addView(text);
            return;
        }
        boolean debug = (getApplicationInfo().flags & ApplicationInfo.FLAG_DEBUGGABLE) != 0;
        WebView.setWebContentsDebuggingEnabled(debug);
        showPage();
        App.of(this).platform().enter(this);
        if (state == null) take(getIntent());
    }

    Bridge bridge() {
        return bridge;
    }

    /** Show the page in a new WebView: at the start, and when the process of the old one is gone. */
    void showPage() {
        if (view != null) {
            frame.removeView(view);
            view.destroy();
        }
        view = new WebView(this);
        view.setBackgroundColor(Color.TRANSPARENT);  // the theme's, until the page is there
        secure(view.getSettings());
        bridge = new Bridge(host, view);
        view.addJavascriptInterface(bridge, Bridge.NAME);
        view.setWebViewClient(new Page(this));
        frame.addView(view);
        view.loadUrl(Page.START);
    }

    private void secure(WebSettings settings) {
        settings.setJavaScriptEnabled(true);
        settings.setDomStorageEnabled(true);
        settings.setBlockNetworkLoads(true);
        settings.setAllowFileAccess(false);
        settings.setAllowContentAccess(false);
        settings.setGeolocationEnabled(false);
        settings.setMixedContentMode(WebSettings.MIXED_CONTENT_NEVER_ALLOW);
        settings.setTextZoom(Math.round(100 * getResources().getConfiguration().fontScale));
    }

    /** Rotation, size, language and text size do not end the Activity (see the manifest). */
    @Override
    public void onConfigurationChanged(Configuration now) {
        super.onConfigurationChanged(now);
        if (view != null) view.getSettings().setTextZoom(Math.round(100 * now.fontScale));
    }

    @Override
    protected void onDestroy() {
        if (host != null) App.of(this).platform().leave(this);
        if (view != null) {
            frame.removeView(view);
            view.destroy();
        }
        super.onDestroy();
    }

    /** The page knows whether it has something to go back to. */
    @Override
    @SuppressWarnings("deprecation")  // still called, unless the manifest asks for the newer one
    public void onBackPressed() {
        if (view == null) {
            super.onBackPressed();
            return;
        }
        view.evaluateJavascript("typeof edgepackBack === 'function' && edgepackBack() === true",
                new ValueCallback<String>() {
                    @Override
                    public void onReceiveValue(String handled) {
                        if ("true".equals(handled)) return;
                        if (view.canGoBack()) view.goBack();
                        else moveTaskToBack(true);
                    }
                });
    }

    // ------------------------------------------------------------------------ files

    /** Let the person choose files. */
    void choose(String id) {
        asked = id;
        Intent intent = new Intent(Intent.ACTION_OPEN_DOCUMENT)
                .addCategory(Intent.CATEGORY_OPENABLE)
                .setType("*/*")  // .gguf has no type of its own
                .putExtra(Intent.EXTRA_ALLOW_MULTIPLE, true);
        try {
            startActivityForResult(intent, CHOOSE);
        } catch (ActivityNotFoundException none) {
            host.chosen(id, null);
        }
    }

    /** Let the person choose a place for a copy of a file. */
    void save(String id, File file, String name) {
        asked = id;
        saved = file;
        Intent intent = new Intent(Intent.ACTION_CREATE_DOCUMENT)
                .addCategory(Intent.CATEGORY_OPENABLE)
                .setType("application/octet-stream")
                .putExtra(Intent.EXTRA_TITLE, name);
        try {
            startActivityForResult(intent, SAVE);
        } catch (ActivityNotFoundException none) {
            host.saved(id, getString(R.string.no_files));
        }
    }

    @Override
    protected void onActivityResult(int code, int result, Intent data) {
        if (asked == null || host == null) return;  // the app was killed meanwhile
        List<Uri> uris = result == RESULT_OK && data != null ? urisOf(data) : new ArrayList<Uri>();
        if (code == CHOOSE) host.chosen(asked, documents(uris));
        else if (code == SAVE && uris.isEmpty()) host.saved(asked, "");
        else if (code == SAVE) copy(asked, saved, uris.get(0));
        asked = null;
    }

    private void copy(final String id, final File file, final Uri to) {
        new Thread("save") {
            @Override
            public void run() {
                try (InputStream in = new FileInputStream(file);
                        OutputStream out = getContentResolver().openOutputStream(to)) {
                    if (out == null) throw new IOException("no stream");
                    byte[] block = new byte[1 << 16];
                    for (int n = in.read(block); n >= 0; n = in.read(block)) out.write(block, 0, n);
                    host.saved(id, null);
                } catch (IOException | RuntimeException foreign) {
                    host.saved(id, getString(R.string.not_saved));
                }
            }
        }.start();
    }

    /** Another app hands files over, by its share sheet or to be opened. */
    @Override
    protected void onNewIntent(Intent intent) {
        super.onNewIntent(intent);
        take(intent);
    }

    private void take(Intent intent) {
        String action = intent == null ? null : intent.getAction();
        boolean gives = Intent.ACTION_SEND.equals(action) || Intent.ACTION_VIEW.equals(action)
                || Intent.ACTION_SEND_MULTIPLE.equals(action);
        List<Uri> uris = gives ? urisOf(intent) : new ArrayList<Uri>();
        if (host != null && !uris.isEmpty()) host.offer(documents(uris));
    }

    /** Content URIs alone: a file: could name a file of this app's own. */
    @SuppressWarnings("deprecation")  // what replaces getParcelableExtra is API 33
    private static List<Uri> urisOf(Intent intent) {
        List<Uri> found = new ArrayList<Uri>();
        if (intent.getClipData() != null) {
            for (int i = 0; i < intent.getClipData().getItemCount(); i++) {
                found.add(intent.getClipData().getItemAt(i).getUri());
            }
        }
        if (found.isEmpty()) found.add(intent.getData());
        if (found.contains(null)) {
            found.clear();
            Object stream = intent.getParcelableExtra(Intent.EXTRA_STREAM);
            if (stream instanceof Uri) found.add((Uri) stream);
        }
        for (Uri uri : new ArrayList<Uri>(found)) {
            if (!"content".equals(uri.getScheme())) found.remove(uri);
        }
        return found;
    }

    private List<Document> documents(List<Uri> uris) {
        List<Document> found = new ArrayList<Document>();
        for (Uri uri : uris) found.add(new Document(getContentResolver(), uri));
        return found;
    }

    // ------------------------------------------------------------------------ permission

    /** Ask once, at the first training: its notification can stop it. */
    void askForNotifications() {
        SharedPreferences kept = getPreferences(MODE_PRIVATE);
        boolean granted = Build.VERSION.SDK_INT < ANDROID_13
                || checkSelfPermission(POST_NOTIFICATIONS) == PackageManager.PERMISSION_GRANTED;
        if (granted || kept.getBoolean(POST_NOTIFICATIONS, false)) return;
        kept.edit().putBoolean(POST_NOTIFICATIONS, true).apply();
        requestPermissions(new String[] {POST_NOTIFICATIONS}, NOTIFICATIONS);
    }
}
